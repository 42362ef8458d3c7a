"""Draws curves.png from curves.csv, beside it: python results/released_code/plot.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

FOLDER = Path(__file__).parent
METHODS = {"drol-k4": "DROL(4)", "fql-alpha300": "FQL"}
METRICS = {
    "success": "success rate in %",
    "q_data": "mean Q of the batch's actions",
    "critic_loss": "critic loss",
    "mse": "mean squared error\nof a fresh sample",
}
LOGARITHMIC = ("critic_loss", "mse")
COLORS = {"released": "tab:orange", "ours": "tab:blue"}
LABELS = {"released": "released JAX code", "ours": "this code"}


def main():
    path = FOLDER / "curves.csv"
    rows = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    figure, axes = plt.subplots(
        len(METRICS), len(METHODS), figsize=(9, 10), sharex=True, sharey="row", layout="constrained"
    )
    for row, (metric, title) in zip(axes, METRICS.items(), strict=True):
        row[0].set_ylabel(title)
        for axis, method in zip(row, METHODS, strict=True):
            for code, color in COLORS.items():
                for seed in np.unique(rows["seed"]):
                    line = rows[
                        (rows["metric"] == metric)
                        & (rows["method"] == method)
                        & (rows["code"] == code)
                        & (rows["seed"] == seed)
                    ]
                    label = LABELS[code] if seed == 0 else None
                    axis.plot(line["step"], line["value"], color=color, linewidth=0.9, label=label)
            if metric in LOGARITHMIC:
                axis.set_yscale("log")
            axis.grid(alpha=0.3)
    for axis, title in zip(axes[0], METHODS.values(), strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("updates")
        axis.set_xticks(range(0, 20_001, 5_000))
    axes[0, 0].legend()
    figure.savefig(FOLDER / "curves.png", dpi=110)


if __name__ == "__main__":
    main()

"""Draws curves.png from curves.csv: python results/released_code/plot.py"""

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")  # no display is needed
import matplotlib.pyplot as plt  # noqa: E402

sys.path.append(str(Path(__file__).parents[2]))  # where tools is
from tools.figures import COLORS  # noqa: E402

FOLDER = Path(__file__).parent
PANELS = {"success": "success rate, %", "q_data": "mean Q of the batch"}
METHODS = {"drol-k4": ("DROL(4)", COLORS["DROL"]), "fql-alpha300": ("FQL", COLORS["FQL"])}


def main():
    table = pd.read_csv(FOLDER / "curves.csv")
    figure, axes = plt.subplots(1, 2, figsize=(8.3, 3.4), layout="constrained")
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for name, (method, color) in METHODS.items():
            for code, style in (("released", "--"), ("ours", "-")):
                rows = table[(table.metric == metric) & (table.method == name)]
                rows = rows[rows.code == code].groupby("step").value.agg(["mean", "min", "max"])
                label = f"{method}, {'this code' if code == 'ours' else 'released code'}"
                axis.plot(rows.index / 1000, rows["mean"], style, color=color, label=label)
                axis.fill_between(rows.index / 1000, rows["min"], rows["max"], color=color,
                                  alpha=0.12, linewidth=0)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("1,000 updates")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(FOLDER / "curves.png", dpi=200)


if __name__ == "__main__":
    main()

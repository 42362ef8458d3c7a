"""Draws curves.png from curves.csv: python results/released_code/plot.py"""

import sys
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parents[1]))  # where tools is
from tools.figures import COLORS, WIDTH, add_caption, label_ends, plt  # noqa: E402

PANELS = {"success": "success rate, %", "q_data": "mean Q of the batch"}
METHODS = {"drol-k4": ("DROL(4)", COLORS["DROL"]), "fql-alpha300": ("FQL", COLORS["FQL"])}


def main():
    table = pd.read_csv(FOLDER / "curves.csv")
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.6), layout="constrained")
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        ends = []
        for name, (method, color) in METHODS.items():
            for code, style in (("released", "--"), ("ours", "-")):
                rows = table[(table.metric == metric) & (table.method == name)]
                rows = rows[rows.code == code].groupby("step").value.agg(["mean", "min", "max"])
                shade = COLORS["released"] if code == "released" else color
                axis.plot(rows["mean"], style, color=color if code == "ours" else shade)
                axis.fill_between(
                    rows.index, rows["min"], rows["max"], color=shade, alpha=0.15, linewidth=0
                )
                label = method if code == "ours" else f"{method},\nreleased"
                ends.append((rows["mean"].iloc[-1], label, shade))
        axis.set_title(title, loc="left")
        axis.set_xlabel("updates")
        axis.set_xlim(0, 20_000)
        axis.set_xticks([0, 10_000, 20_000], ["0", "10,000", "20,000"])
        if metric == "success":
            axis.set_ylim(0, 100)
            label_ends(axis, ends, gap=0.1)
    for x, y, text, name in ((6_200, -78, "DROL(4)", "DROL"), (9_500, -52, "FQL", "FQL")):
        axes[1].text(x, y, text, color=COLORS[name], ha="right")
    add_caption(
        figure,
        "cube-single, task 2, small networks. Lines: mean of three seeds; grey: the "
        "released code. Shaded: lowest to highest seed.",
    )
    figure.savefig(FOLDER / "curves.png")


if __name__ == "__main__":
    main()

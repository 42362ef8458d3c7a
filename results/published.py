"""Draws published.png, the papers' scores by family: python results/published.py"""

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where tools is
from tools.figures import COLORS, WIDTH, add_caption, plt  # noqa: E402

METHODS = {"DROL(16)": ("DROL16", "DROL"), "DROL*": ("DROLstar", "DROL*"), "FQL": ("FQL", "FQL")}


def main():
    table = pd.read_csv(ROOT / "testdata" / "published_results.csv")
    table = table[~table.group.str.startswith("d4rl")]
    settings = pd.read_csv(ROOT / "testdata" / "published_settings.csv")
    settings = settings[(settings.suite == "DROL*") & (settings.task == 1)]
    best = settings.set_index("family").k.astype(int)
    figure, axis = plt.subplots(figsize=(WIDTH, 3.7), layout="constrained")
    for i, (method, (column, color)) in enumerate(METHODS.items()):
        scores, spread, x = table[column], table[f"{column}_std"], table.index + 0.27 * (i - 1)
        axis.bar(
            x,
            scores,
            0.25,
            color=COLORS[color],
            yerr=spread,
            error_kw={"elinewidth": 0.8, "ecolor": "#555555"},
        )
        for place, score, top in zip(x, scores, scores + spread, strict=True):
            axis.text(place, top + 1, score, ha="center", fontsize=8)
        axis.text(
            (0.22, 0.36, 0.46)[i],
            0.97,
            method,
            color=COLORS[color],
            fontsize=12,
            fontweight="bold",
            transform=axis.transAxes,
            va="top",
        )
    names = table.group.str.replace("-", "-\n", n=1)
    names = names.str.replace("humanoidmaze-\n", "humanoid-\nmaze-")
    labels = [f"{name}\nK* = {best[group]}" for name, group in zip(names, table.group, strict=True)]
    axis.set_xticks(table.index, labels, fontsize=7.6)
    axis.tick_params(axis="x", length=0)
    axis.set(ylabel="success rate, %", ylim=(0, 115), yticks=range(0, 101, 20), xlim=(-0.5, 9.5))
    add_caption(
        figure,
        "The papers' means over five tasks and eight seeds, with the standard "
        "deviation over seeds. DROL(16): K = 16. DROL*: the best K of the family, K*.",
    )
    figure.savefig(ROOT / "results" / "published.png")


if __name__ == "__main__":
    main()

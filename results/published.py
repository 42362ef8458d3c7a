"""Draws published.png, the papers' scores by family: python results/published.py"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")  # no display is needed
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # where tools is
from tools.figures import COLORS  # noqa: E402

METHODS = {"FQL": "FQL", "DROL16": "DROL", "DROLstar": "DROL*"}
LABELS = {"FQL": "FQL", "DROL16": "DROL(16)", "DROLstar": "DROL*, the best K of each family"}


def main():
    table = pd.read_csv(ROOT / "testdata" / "published_results.csv")
    table = table[~table.group.str.startswith("d4rl")]
    figure, axis = plt.subplots(figsize=(8.3, 3.2), layout="constrained")
    places = np.arange(len(table))
    for i, (column, color) in enumerate(METHODS.items()):
        bars = axis.bar(places + 0.27 * (i - 1), table[column], 0.25, color=COLORS[color],
                        label=LABELS[column])
        axis.bar_label(bars, fontsize=7)
    names = table.group.str.replace("humanoidmaze", "humanoid-maze").str.replace("-", "-\n", n=1)
    axis.set_xticks(places, names, fontsize=8)
    axis.set_ylabel("success rate, %")
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "results" / "published.png", dpi=200)


if __name__ == "__main__":
    main()

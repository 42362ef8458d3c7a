"""Draws runtime.png from runtime.csv and prints its medians: python -m results.runtime.plot"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

FOLDER = Path(__file__).parent
BLUE, GREEN, GREY = "#0072B2", "#009E73", "#A0A0A0"


def main():
    table = pd.read_csv(FOLDER / "runtime.csv")
    table = table.pivot_table("ms", "method", "code", "median", sort=False)
    print(table.round().to_string())
    figure, axis = plt.subplots(figsize=(8.3, 3), layout="constrained")
    colors = [BLUE, BLUE, BLUE, GREEN]  # of DROL, K = 1, 16, 64, and FQL
    places = range(len(table))
    ours = axis.bar([x - 0.2 for x in places], table["this code"], 0.4, color=colors)
    released = axis.bar([x + 0.2 for x in places], table["released code"], 0.4, color=GREY)
    axis.bar_label(ours, fmt="this code\n{:,.0f} ms", fontsize=9)
    axis.bar_label(released, fmt="released\n{:,.0f} ms", fontsize=9)
    axis.set_xticks(places, table.index)
    axis.tick_params(axis="x", length=0)
    axis.set_yticks(range(0, 4001, 1000), ["0", "1,000", "2,000", "3,000", "4,000"])
    axis.set_ylim(top=5000)
    axis.set_ylabel("ms per update")
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "Two CPU cores. Networks 512 x 4, batch 256, 69 observation and 21 action dimensions. "
        "Medians of three rounds.",
        fontsize=8.5,
        x=0.01,
        ha="left",
    )
    figure.savefig(FOLDER / "runtime.png", dpi=200)


if __name__ == "__main__":
    main()

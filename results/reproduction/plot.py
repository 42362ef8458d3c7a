"""Draws curves.png from table.csv and public_fql.csv: python results/reproduction/plot.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402

FOLDER = Path(__file__).parent
TASKS = {
    "cube-single-play-task2": "cube-single, task 2: success rate in %",
    "door-expert-v1": "door-expert: normalised return",
    "pen-expert-v1": "pen-expert: normalised return",
}
COLORS = {"DROL(16)": "tab:blue", "FQL": "tab:orange", "FQL, released code": "tab:gray"}
PUBLISHED = {  # after 1,000,000 updates (D4RL: 500,000); DROL's on cube-single is of five tasks
    "cube-single-play-task2": {"DROL(16)": 97, "FQL": 97},
    "door-expert-v1": {"FQL": 104},
    "pen-expert-v1": {"FQL": 142},
}


def main():
    table = pd.read_csv(FOLDER / "table.csv")
    latest = table.loc[table.groupby("task").updates.idxmax(), ["task", "data"]]
    table = table.merge(latest)  # without the runs on other data
    table = table[table.method.isin(COLORS)]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
        for (method, seed), run in table[table.task == task].groupby(["method", "seed"]):
            label = method if seed == 0 else None
            axis.plot(run.updates, run.score, color=COLORS[method], marker=".", label=label)
            if seed == 0:
                axis.fill_between(run.updates, run.low, run.high, color=COLORS[method], alpha=0.15)
        for i, (method, score) in enumerate(PUBLISHED[task].items()):
            dashes = (4 * i, (4, 4))  # of two lines at one height, both are seen
            axis.axhline(score, color=COLORS[method], linestyle=dashes, linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
    public = pd.read_csv(FOLDER / "public_fql.csv")
    error = [public.score - public.low, public.high - public.score]
    style = {"fmt": "o", "color": "black", "markersize": 4, "capsize": 3}
    axes[0].errorbar(public.updates, public.score, error, label="FQL, public re-run", **style)
    axes[0].legend(fontsize=8)
    figure.savefig(FOLDER / "curves.png", dpi=110)


if __name__ == "__main__":
    main()

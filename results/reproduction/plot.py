"""Prints the page's tables and draws its pictures: python -m results.reproduction.plot

curves.png      from scores.csv: scores over updates at full size
compare_*.png   from compare.csv: final networks of both codes, a point per seed
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from scipy import stats

from tools.figures import final_score

FOLDER = Path(__file__).resolve().parent
TESTDATA = FOLDER.parents[1] / "testdata"
COLORS = {"DROL(16)": "tab:blue", "FQL": "tab:orange", "drol": "tab:blue", "fql": "tab:orange"}
RUN = ["task", "method", "code", "seed"]
PANELS = {
    "cube-single-play-singletask-task2-v0": "cube-single, task 2: success, %",
    "door-expert-v1": "door-expert: normalised return",
    "pen-expert-v1": "pen-expert: normalised return",
}
STATISTICS = {
    "score": "score",
    "q_data": "mean Q of the data",
    "td_loss": "TD loss",
    "critic_gap": "mean |Q1 - Q2|",
    "mse": "squared distance",
    "spread": "variance over latents",
    "distill": "distillation error",
}


# -------------------- scores at full size
def longest(scores):
    """The seeds of a task, method and code that have the most updates."""
    last = scores.groupby(RUN).updates.transform("max")
    return scores[last == scores.groupby(RUN[:-1]).updates.transform("max")]


def summarise(scores):
    """Per task, method and code: the score by the papers' rule, and the mean of the last three."""
    rows = []
    for (task, method, code, _), run in longest(scores).groupby(RUN):
        row = {"task": task, "method": method, "code": code, "updates": run.updates.max()}
        row["score"] = final_score(run.to_dict("records"), task)
        row["last_three"] = run.score.tail(3).mean()
        rows.append(row)
    groups = pd.DataFrame(rows).groupby(["task", "method", "code", "updates"])
    return groups.agg(
        seeds=("score", "count"), score=("score", "mean"), last_three=("last_three", "mean")
    )


def draw_curves(scores):
    published = pd.read_csv(TESTDATA / "published_per_task.csv").query("method == 'FQL'")
    published = published.set_index("task")["mean"]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    for axis, (task, title) in zip(axes, PANELS.items(), strict=True):
        runs = longest(scores[(scores.task == task) & (scores.code != "replay")])
        for (method, code), run in runs.groupby(["method", "code"]):
            score = run.groupby("updates").score
            style = "-" if code == "ours" else "--"
            label = f"{method}, {'here' if code == 'ours' else 'released code'}"
            axis.plot(score.mean(), style, color=COLORS[method], linewidth=2, label=label)
            low, high = score.min(), score.max()
            axis.fill_between(low.index, low, high, color=COLORS[method], alpha=0.15, linewidth=0)
        axis.axhline(published[task], color="grey", linestyle=":", label="FQL, published")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set(xlim=(0, None), ylim=(0, None), xlabel="updates")
        axis.xaxis.set_major_locator(plt.MaxNLocator(3))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    handles, labels = axes[1].get_legend_handles_labels()  # door-expert has all of them
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


# -------------------- both codes, many seeds
def compare(runs):
    """Ours less released, per statistic: Welch's 95 % interval and p, and Hedges' g."""
    rows = {}
    for name in runs[list(STATISTICS)].dropna(axis=1):
        ours, released = (runs[runs.code == code][name] for code in ("ours", "released"))
        test = stats.ttest_ind(ours, released, equal_var=False)
        low, high = test.confidence_interval()
        freedom = len(ours) + len(released) - 2
        pooled = ((len(ours) - 1) * ours.var() + (len(released) - 1) * released.var()) / freedom
        difference = ours.mean() - released.mean()
        rows[name] = {
            "ours": ours.mean(),
            "ours_std": ours.std(),
            "released": released.mean(),
            "released_std": released.std(),
            "difference": difference,
            "low": low,
            "high": high,
            "hedges_g": difference / pooled**0.5 * (1 - 3 / (4 * freedom - 1)),
            "p": test.pvalue,
        }
    return pd.DataFrame(rows).T


def draw_compare(runs):
    """A panel per statistic: seeds as points, their mean and its 95 % interval as a bar. The
    dashes join a run of the released code with ours on its random numbers."""
    names = list(runs[list(STATISTICS)].dropna(axis=1))
    figure, axes = plt.subplots(1, len(names), figsize=(14, 3), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        values = runs.pivot(index="seed", columns="code", values=name)
        for x, code in enumerate(("released", "ours")):
            seeds = values[code].dropna()
            spots = x + np.linspace(-0.15, 0.15, len(seeds))
            axis.plot(spots, seeds, "o", color="tab:grey" if x == 0 else "tab:orange", alpha=0.7)
            half = stats.t.ppf(0.975, len(seeds) - 1) * seeds.sem()
            axis.errorbar(x, seeds.mean(), half, fmt="_", color="black", capsize=6, markersize=14)
        ticks = {0: "released", 1: "here"}
        if "replay" in values:
            ticks[2.5] = "same\nnumbers"
            for pair in values[["released", "replay"]].dropna().to_numpy():
                axis.plot([2, 3], pair, "o--", color="tab:green", alpha=0.7)
        axis.set_xticks(list(ticks), ticks.values(), fontsize=8)
        axis.set_title(STATISTICS[name], loc="left", fontsize=9)
        axis.tick_params(axis="y", labelsize=8)
    return figure


def main():
    scores = pd.read_csv(FOLDER / "scores.csv")
    print(summarise(scores).round(1).to_string())
    draw_curves(scores).savefig(FOLDER / "curves.png", dpi=120)
    table = pd.read_csv(FOLDER / "compare.csv")
    for (algorithm, updates), runs in table.groupby(["algorithm", "updates"]):
        counts = runs.code.value_counts()
        print(f"\n{algorithm}, {updates:,} updates, seeds: {counts.to_dict()}")
        if min(counts.get("ours", 0), counts.get("released", 0)) > 2:  # too few tell nothing
            print(compare(runs).to_string(float_format="{:.4g}".format))
            draw_compare(runs).savefig(FOLDER / f"compare_{algorithm}.png", dpi=120)


if __name__ == "__main__":
    main()

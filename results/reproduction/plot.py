"""Makes table.csv, summary.csv and curves.png from records/: python results/reproduction/plot.py

table.csv      every evaluation, with a 95 % interval for that evaluation alone
summary.csv    per task, method and code: mean of the last three evaluations, over the seeds that
               have the most updates, its lowest and highest seed, and the published score
curves.png     means over those seeds
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))  # where drol.py is
from tools import figures, records  # noqa: E402

TITLES = {
    "cube-single-play-singletask-task2-v0": "cube-single, task 2: success, %",
    "door-expert-v1": "door-expert: normalised return",
    "pen-expert-v1": "pen-expert: normalised return",
}
CODES = ["ours", "released"]  # that are drawn and summed up


def interval(rows, episodes):
    """95 % of each evaluation: Wilson's of a success rate; of a return, 1.96 standard errors."""
    if "singletask" in rows.task.iloc[0]:
        shares = [stats.binomtest(round(x / 100 * episodes), episodes) for x in rows.score]
        found = [100 * np.array(x.proportion_ci(method="wilson")) for x in shares]
        return np.array(found).T
    per_return = np.polyfit(rows["return"], rows.score, 1)[0] if len(rows) > 1 else np.nan
    half = 1.96 * per_return * rows.return_std / episodes**0.5
    return rows.score - half, rows.score + half


def make_table(folder):
    """Every evaluation of the records below a folder."""
    runs, _ = records.load_runs(folder, records.read_published())
    tables = []
    for run in runs.itertuples():
        config = json.loads((run.path / "config.json").read_text())
        method = f"DROL({run.k})" if config["algorithm"] == "drol" else "FQL"
        table = pd.read_csv(run.path / "eval.csv")
        table["episodes"] = config.get("eval_episodes", 50)
        about = {"task": run.env, "method": method, "code": run.code, "seed": run.seed}
        tables.append(table.assign(**about))
    table = pd.concat(tables, ignore_index=True)
    for _, rows in table.groupby("task"):
        table.loc[rows.index, ["low", "high"]] = np.transpose(interval(rows, rows.episodes.iloc[0]))
    columns = ["task", "method", "code", "seed", "step", "episodes", "score", "low", "high"]
    return table[columns].rename(columns={"step": "updates"})


def longest(table):
    """The seeds of a task, method and code that have the most updates."""
    groups = table.groupby(["task", "method", "code"])
    return table[
        table.groupby(["task", "method", "code", "seed"]).updates.transform("max")
        == groups.updates.transform("max")
    ]


def published_score(task, method):
    """A published score and what it is of; DROL's paper has means over a family's tasks alone."""
    per_task = pd.read_csv(records.ROOT / "testdata" / "published_per_task.csv")
    found = per_task[(per_task.task == task) & (per_task.method == method)]
    if len(found):
        return found["mean"].iloc[0], "this task"
    families = pd.read_csv(records.ROOT / "testdata" / "published_results.csv", index_col="group")
    family = task.split("-singletask")[0].rpartition("-")[0]
    if method == "DROL(16)" and family in families.index:
        return families.DROL16[family], "mean of the family's five tasks"
    return np.nan, "not published"


def summarise(table):
    rows = []
    for (task, method, code), runs in longest(table).groupby(["task", "method", "code"]):
        last = runs.sort_values("updates").groupby("seed").score.agg(lambda x: x.tail(3).mean())
        if code in CODES and runs.groupby("seed").updates.count().min() >= 3:
            score, what = published_score(task, method)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "code": code,
                    "seeds": len(last),
                    "updates": runs.updates.max(),
                    "score": last.mean(),
                    "low": last.min(),
                    "high": last.max(),
                    "published": score,
                    "published_is": what,
                }
            )
    return pd.DataFrame(rows)


def draw(table):
    """A panel per task. The numbers beside the names are the scores of summary.csv."""
    figure, axes = figures.plt.subplots(1, 3, figsize=(figures.WIDTH, 3.7), layout="constrained")
    summary = summarise(table).set_index(["task", "method", "code"]).score
    for axis, (task, title) in zip(axes, TITLES.items(), strict=True):
        texts = []
        mine = longest(table[(table.task == task) & table.code.isin(CODES)])
        end = mine.updates.max()
        for (method, code), runs in mine.groupby(["method", "code"]):
            released = code == "released"
            color = figures.COLORS["released" if released else method.partition("(")[0]]
            score = runs.groupby("updates").score
            line = "-." if released and method != "FQL" else "-"
            axis.plot(score.mean(), line, color=color, linewidth=2)
            axis.fill_between(
                score.mean().index, score.min(), score.max(), color=color, alpha=0.2, linewidth=0
            )
            count = runs.seed.nunique()
            text = f"{method}{', released' * released}{f' ({count} seeds)' * (count > 1)}"
            if runs.updates.max() == end:
                text += f": {summary[task, method, code]:.1f}"
            texts.append((text, color))
            score, what = published_score(task, method)
            if what == "this task" and not released:
                axis.axhline(score, color=figures.COLORS["published"], linestyle="--")
                texts.append((f"{method}, published: {score}", figures.COLORS["published"]))
        for i, (text, color) in enumerate(sorted(texts, reverse=True)):
            axis.text(
                0.98,
                0.03 + 0.068 * i,
                text,
                color=color,
                ha="right",
                fontsize=8.5,
                transform=axis.transAxes,
            )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set(xlim=(0, None), ylim=(0, None), xlabel="updates")
        axis.xaxis.set_major_locator(figures.mpl.ticker.MaxNLocator(3))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    figures.add_caption(
        figure,
        "Numbers: the mean of the last three evaluations. Shaded: lowest to "
        "highest seed. Grey: the released code. Dashed: FQL as published, "
        "after 1,000,000 updates (cube-single) or 500,000.",
    )
    return figure


def main():
    table = make_table(FOLDER / "records")
    table.round(1).to_csv(FOLDER / "table.csv", index=False)
    summarise(table).round(1).to_csv(FOLDER / "summary.csv", index=False)
    draw(table).savefig(FOLDER / "curves.png")


if __name__ == "__main__":
    main()

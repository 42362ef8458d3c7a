"""Draws scaling.png from local.csv, and prints the page's table of scores.

python -m results.local.plot draws from the CSV that is here. Given a folder of runs, such as
runs/local, it writes the CSV from them first.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

FOLDER = Path(__file__).parent
MEASURES = {
    "candidate_distance": "distance between two candidates",
    "bc_loss": "squared distance from winner to data",
}


def gather(run_dir):
    """A row per evaluation. The measures are means over the updates since the one before."""
    tables = []
    for path in sorted(run_dir.glob("*/drol-*/*/config.json")):
        config = json.loads(path.read_text())
        k, every = config["k"], config["eval_interval"]
        log = pd.read_csv(path.with_name("train.csv"))
        # The root mean square over pairs of candidates, from their variance.
        log["candidate_distance"] = (2 * log.candidate_spread * k / max(k - 1, 1)) ** 0.5
        log["step"] = (log.step + every - 1) // every * every
        table = pd.read_csv(path.with_name("eval.csv"))[["step", "score"]]
        table = table.merge(log.groupby("step")[[*MEASURES]].mean().round(5), on="step")
        tables.append(table.assign(k=k, seed=config["seed"]))
    table = pd.concat(tables).sort_values(["k", "seed", "step"])
    return table[["k", "seed", "step", "score", *MEASURES]]


def draw(table):
    last = table[table.step == table.step.max()]
    figure, axes = plt.subplots(1, 2, figsize=(8.3, 3.2), layout="constrained")
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        axis.plot(last.groupby("k")[measure].mean(), color="#56B4E9")
        axis.plot(last.k, last[measure], "o", color="#0072B2", markersize=5)
        axis.set_xscale("log", base=2)
        axis.set_xticks(last.k.unique(), last.k.unique())
        axis.set_ylim(bottom=0)
        axis.set_xlabel("K, number of candidates")
        axis.set_ylabel("per action dimension")
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.supxlabel(
        f"cube-single, task 2, small networks, {table.step.max():,} updates. "
        f"Means over the last {table.step.min():,} updates.\n"
        "Dots: one per seed. Line: their mean.",
        fontsize=8.5,
        x=0.01,
        ha="left",
    )
    figure.savefig(FOLDER / "scaling.png", dpi=200)


def main():
    if sys.argv[1:]:
        gather(Path(sys.argv[1])).to_csv(FOLDER / "local.csv", index=False)
    table = pd.read_csv(FOLDER / "local.csv")
    draw(table)
    scores = table.groupby(["k", "seed"]).score.apply(lambda x: x.tail(3).mean()).unstack()
    print(scores.assign(mean=scores.mean(axis=1)).round(1).to_string(na_rep=""))


if __name__ == "__main__":
    main()

"""The folders of runs as tables: a row per run, a row per evaluation, and the table of results.

tools/figures.py draws them. Runs are read by their config.json, whatever their folders are called.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import drol
import fql

ROOT = Path(__file__).resolve().parents[1]
SUITES = {"DROL(16)": "DROL16", "DROL*": "DROLstar", "FQL": "FQL"}  # names in published_results.csv
SWEEP = ["task", "condition", "variant"]  # runs that differ in K and seed alone
MEASURES = {
    "distance": "distance between two candidates",
    "bc_loss": "squared distance of the winner to the data",
}
HARDWARE = ["device", "batch_size", "hidden_dims", "observation_dim", "action_dim"]
# Settings that no caption names: they do not change a score, or the method's name tells them.
UNNAMED = {
    "env_id",
    "task",
    "seed",
    "steps",
    "log_interval",
    "checkpoint_interval",
    "run_dir",
    "snapshot_interval",
    "device",
    "compile",
    "overwrite",
    "track",
    "eval_envs",
    "k",
    "bc_coef",
    "alpha",
}


def read_published():
    """{environment: its published settings of DROL*}."""
    table = pd.read_csv(ROOT / "testdata" / "published_settings.csv")
    return table[table.suite == "DROL*"].set_index("full_name").to_dict("index")


def load_run(path, published):
    """A run's folder as a row of the table of runs, and its evaluations as a table. The released
    code's runs have its settings under "agent"."""
    config = json.loads((path / "config.json").read_text())
    config |= config.get("agent", {})
    config.setdefault("k", config.get("num_candidates"))
    curve = pd.DataFrame({"step": [], "score": []}, dtype=int)
    if (path / "eval.csv").exists():
        curve = pd.read_csv(path / "eval.csv", usecols=["step", "score"])
    last = curve.step.max() if len(curve) else 0
    finished = last > 0 and last >= config.get("steps", last)
    name = config["env_name"]
    dataset, _, number = name.removesuffix("-v0").partition("-singletask-task")
    if number:
        family = dataset.rpartition("-")[0]
        task, metric, scores_used = f"{family}, task {number}", "success rate, %", 3
    else:
        family = "d4rl-antmaze" if "antmaze" in name else "d4rl-adroit"
        task, metric, scores_used = name, "normalised return", 1
    program = {"drol": drol, "fql": fql}[config["algorithm"]]
    usual = program.Args(env_id=family if number else name, task=int(number) if number else None)
    program.resolve(usual)
    usual = json.loads(json.dumps(vars(usual)))
    given = {x: config[x] for x in usual if x in config and config[x] != usual[x]}
    k = config["k"] if program is drol else None
    method, variant = (f"DROL K = {k}", "DROL") if k else ("FQL", "FQL")
    for weight in given.keys() & {"bc_coef", "alpha"}:
        method += f", {weight} {given[weight]:g}"
        variant += f", {weight} {given[weight]:g}"
    settings = [
        f"{x} {' '.join(map(str, np.atleast_1d(value)))}"
        for x, value in given.items()
        if x not in UNNAMED
    ]
    if "code" in config:
        settings.append(f"code {config['code']}")
    star = published.get(name, {"k": None})
    suites = []
    if not given.keys() & {"k", "bc_coef", "alpha", "discount", "q_agg"}:
        suites.append("DROL(16)" if k else "FQL")
    if k == star["k"] and config["bc_coef"] == star["bc_coef"]:
        suites.append("DROL*")
    row = {
        "path": path,
        "env": name,
        "task": task,
        "family": family,
        "method": method,
        "variant": variant,
        "k": k,
        "seed": config["seed"],
        "code": config.get("code", "ours"),
        "settings": "; ".join(settings),
        "suites": suites,
        "metric": metric,
        "condition": "; ".join([f"{last if finished else config['steps']:,} updates", *settings]),
        "published_k": star["k"],
        "score": curve.score.tail(scores_used).mean() if finished else math.nan,
    }
    return row, curve.assign(path=path)


def load_runs(folder, published):
    """The tables of runs and of their evaluations. What cannot be read is named and left out. Two
    runs of one task, method, settings and seed, such as a copy and its original, are refused."""
    rows, curves = [], []
    for path in sorted(folder.glob("*/*/*/config.json")):
        try:
            row, curve = load_run(path.parent, published)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SystemExit) as error:
            print(f"left out: {path.parent} cannot be read ({error!r})")
            continue
        rows.append(row)
        curves.append(curve)
    if not rows:
        columns = ["path", "env", "family", "suites", "k", "score", *SWEEP]
        return pd.DataFrame(columns=columns), pd.DataFrame(columns=columns)
    runs = pd.DataFrame(rows).sort_values(["task", "variant", "k", "seed"])
    same = runs[runs.duplicated(["env", "method", "settings", "seed"], keep=False)]
    if len(same):
        first, second = same.path[:2]
        sys.exit(
            f"error: {first} and {second} are two runs of one task, method and seed; "
            f"move one of them out of {folder}"
        )
    runs = runs.astype({"k": "Int64", "published_k": "Int64"})  # missing for FQL
    return runs, runs.drop(columns="score").merge(pd.concat(curves), on="path")


def over_seeds(frame, keys, column):
    statistics = {"seeds": "count", "mean": "mean", "std": "std", "low": "min", "high": "max"}
    return frame.groupby(keys, sort=False, dropna=False)[column].agg(**statistics).reset_index()


def sweeps(runs):
    """The finished DROL runs of which two or more differ in K alone."""
    runs = runs[runs.score.notna() & runs.k.notna()]
    return runs[runs.groupby(SWEEP).k.transform("nunique") > 1]


def load_candidates(runs):
    """The runs of the longest sweeps with means of train.csv over the last tenth of training. The
    distance between candidates is the root mean square over pairs, from their variance."""
    ks = runs.groupby(SWEEP).k.transform("nunique")
    rows = []
    for _, run in runs[ks == ks.max()].iterrows():
        if (run.path / "train.csv").exists():
            log = pd.read_csv(run.path / "train.csv")
            log["distance"] = np.sqrt(log.candidate_spread * 2 * run.k / max(run.k - 1, 1))
            rows.append({**run, **log[[*MEASURES]].tail(max(len(log) // 10, 1)).mean()})
    return pd.DataFrame(rows)


def load_runtime(path):
    """Median ms per update from tools/bench.py's CSV: a row per method, a column per way to run it,
    one for the released code where the file has its times. Also what they were measured on."""
    try:
        rows = pd.read_csv(path)
        ways = [x for x in ("mode", "matmul_precision") if x in rows and rows[x].nunique() > 1]
        rows["way"] = rows[ways].agg(", ".join, axis=1) if ways else "this code"
        if "released_ms" in rows:
            released = rows.assign(way="released code", update_ms=rows.released_ms)
            rows = pd.concat([rows, released])
        table = rows.pivot_table("update_ms", "method", "way", "median", sort=False)
        return table, rows[HARDWARE].iloc[0]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        sys.exit(f"error: {path} is not usable: {error!r}")


# ------------------------------------------------------------------------------------------ table


def iqm(*samples):
    """Interquartile mean over all samples."""
    return stats.trim_mean(np.concatenate(samples), 0.25)


def summary(runs):
    """Mean and deviation over the seeds that have every task, and the interquartile mean of their
    runs with its 95 % percentile bootstrap interval, stratified by task, as rliable has it."""
    scores = runs.pivot_table(index="seed", columns="env", values="score")
    scores = scores.dropna()
    per_seed = scores.mean(axis=1)
    row = {
        "tasks": scores.shape[1],
        "seeds": len(scores),
        "mean": per_seed.mean(),
        "std": per_seed.std(),
        "iqm": math.nan,
        "iqm_low": math.nan,
        "iqm_high": math.nan,
    }
    samples = list(scores.to_numpy().T)
    if len(scores) > 0:
        row["iqm"] = iqm(*samples)
    if len(scores) >= 3:
        bootstrap = stats.bootstrap(
            samples,
            iqm,
            n_resamples=2000,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        row["iqm_low"], row["iqm_high"] = bootstrap.confidence_interval
    return row


def results(runs):
    """A row per family, method and condition, and one for each method that has not been run."""
    published_scores = pd.read_csv(ROOT / "testdata" / "published_results.csv", index_col="group")
    rows, by_suite = [], runs.explode("suites")
    for family in dict.fromkeys([*published_scores.index, *runs.family]):
        paper = published_scores.loc[family] if family in published_scores.index else {"tasks": 5}
        for suite, column in SUITES.items():
            common = {
                "family": family,
                "method": suite,
                "published": paper.get(column, math.nan),
                "of_tasks": int(paper["tasks"]),
                "unfinished": 0,
            }
            mine = by_suite[(by_suite.family == family) & (by_suite.suites == suite)]
            if mine.empty:
                rows.append(common | {"tasks": 0, "seeds": 0, "condition": "not run"})
            for condition, cell in mine.groupby("condition"):
                names = cell.task[cell.score.notna()].str.split(", ").str[-1]  # task 2
                row = {
                    "which": ", ".join(names.unique()),
                    "condition": condition,
                    "unfinished": cell.score.isna().sum(),
                }
                rows.append(common | summary(cell) | row)
    return pd.DataFrame(rows)


RESULTS_HEAD = """\
Success rate in % on OGBench, the mean of the last three evaluations; normalised return on D4RL, the
last. Ours: mean +- standard deviation over the seeds that have every task; IQM: interquartile mean
over their runs, from three seeds on with its 95 % bootstrap interval. DROL* repeats DROL(16) where
the two have the same settings. Published: the paper's mean over all tasks and 8 seeds; it is
comparable only where ours has all tasks, the published settings and the official data.

| family | method | ours | IQM | published | tasks | seeds | settings and data |
|---|---|---|---|---|---|---|---|
"""


def cells_of(row):
    """A row of the table of results, as strings."""
    ours, middle, paper, note = "-", "-", "not published", row.condition
    tasks = f"{row.tasks} of {row.of_tasks}"
    if row.condition == "not run":
        ours, middle = "not run", "not run"
    if row.seeds > 0:
        ours, middle = f"{row.mean:.1f}", f"{row.iqm:.1f}"
    if row.seeds > 1:
        ours += f" +- {row.std:.1f}"
    if row.seeds > 2:
        middle += f" [{row.iqm_low:.1f}, {row.iqm_high:.1f}]"
    if 0 < row.tasks < row.of_tasks:
        tasks += f" ({row.which})"
    if row.unfinished > 0:
        note += f" ({row.unfinished} unfinished left out)"
    if row.published >= 0:
        paper = f"{row.published:.0f}"
    return [row.family, row.method, ours, middle, paper, tasks, str(row.seeds), note]


def results_markdown(table):
    lines = [f"| {' | '.join(cells_of(row))} |\n" for row in table.itertuples()]
    return RESULTS_HEAD + "".join(lines)

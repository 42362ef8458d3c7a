"""The folders of runs as tables: a row per run, a row per evaluation, and the table of results.

tools/figures.py draws them. Runs are read by their config.json, whatever their folders are called.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import drol
import fql

ROOT = Path(__file__).resolve().parents[1]
SUITES = {"DROL(16)": "DROL16", "DROL*": "DROLstar", "FQL": "FQL"}  # names in published_results.csv
SWEEP = ["task", "condition", "variant"]  # runs that differ in K and seed alone
MEASURES = {"pairwise_distance": "distance between two candidates",
            "bc_loss": "squared distance of the winner to the data"}
HARDWARE = ["device", "batch_size", "hidden_dims", "observation_dim", "action_dim"]
# Settings that no caption names: they do not change a score, or the method's name tells them.
UNNAMED = {"env_id", "task", "seed", "steps", "log_interval", "checkpoint_interval", "data_dir",
           "snapshot_interval", "run_dir", "device", "compile", "overwrite", "track", "eval_envs",
           "wandb_project_name", "wandb_entity", "k", "bc_coef", "alpha"}


def read_published():
    """{(environment, suite): its published settings}."""
    table = pd.read_csv(ROOT / "testdata" / "published_settings.csv")
    return table.set_index(["full_name", "suite"]).to_dict("index")


def load_run(path, published):
    """A run's folder as a row of the table of runs, and its evaluations as a table."""
    config = json.loads((path / "config.json").read_text())
    settings, env, data = config["settings"], config["env"], config["data"]
    if (path / "eval.csv").exists():
        curve = pd.read_csv(path / "eval.csv", usecols=["step", "score"])
    else:
        curve = pd.DataFrame({"step": np.array([], int), "score": np.array([], float)})
    finished = len(curve) > 0 and curve.step.max() >= settings["steps"]
    if env["task"]:
        task = env["dataset"].removesuffix("-v0").removesuffix("-play").removesuffix("-navigate")
        task, metric, scores_used = f"{task}, task {env['task']}", "success rate, %", 3
    else:  # D4RL
        task, metric, scores_used = env["name"], "normalised return", 1
    suites = [suite for suite in SUITES if in_suite(suite, config, published)]
    given = given_settings(config, published)
    method = variant = config["algorithm"].upper()
    if method == "DROL":
        method += f" K = {settings['k']}"
    for weight in given.keys() & {"bc_coef", "alpha"}:
        method += f", {weight} {given[weight]:g}"
        variant += f", {weight} {given[weight]:g}"
    parts = [f"{curve.step.max() if finished else settings['steps']:,} updates"]
    for name, value in given.items():
        if name not in UNNAMED:
            parts.append(f"{name} {' '.join(map(str, np.atleast_1d(value)))}")
    if data["source"].startswith("collected locally"):
        made = data["source"].removeprefix("collected locally: ").split(", ogbench")[0]
        parts.append(f"local data ({made})")
    if data["simulator"].startswith("mujoco_py "):
        parts.append(data["simulator"])
    row = {"path": path, "env": env["name"], "task": task, "family": family_of(env, published),
           "method": method, "variant": variant, "k": settings.get("k"), "seed": settings["seed"],
           "condition": "; ".join(parts), "suites": suites, "metric": metric, "config": config,
           "published_k": published.get((env["name"], "DROL*"), {}).get("k"),
           "score": curve.score.tail(scores_used).mean() if finished else math.nan}
    return row, curve.assign(path=path)


def given_settings(config, published):
    """The settings that the command line gave another than the published or default value."""
    program, suite = {"drol": (drol, "DROL(16)"), "fql": (fql, "FQL")}[config["algorithm"]]
    usual = json.loads(json.dumps(vars(program.Args(env_id="")), default=str))
    usual |= published.get((config["env"]["name"], suite), {})
    origin, settings = config["origin"], config["settings"]
    typed = [name for name in settings if origin.get(name) == "command line"]
    return {name: settings[name] for name in typed if settings[name] != usual.get(name)}


def in_suite(suite, config, published):
    """Whether a run has the settings that DROL(16), DROL* or FQL has for the run's environment."""
    settings, row = config["settings"], published.get((config["env"]["name"], suite))
    if (config["algorithm"] == "fql") != (suite == "FQL"):
        return False
    if row is None:  # not published: the settings that the program takes for it
        weight = "alpha" if suite == "FQL" else "bc_coef"
        typed = config["origin"].get(weight) == "command line"
        return suite != "DROL*" and settings.get("k", 16) == 16 and not typed
    names = ["k", "bc_coef", "alpha", "discount", "q_agg"]
    return all(settings[name] == row[name] for name in names if pd.notna(row[name]))


def family_of(env, published):
    if not env["task"]:
        return "d4rl-antmaze" if "antmaze" in env["name"] else "d4rl-adroit"
    if (env["name"], "FQL") in published:
        return env["preset"]
    return env["dataset"].removesuffix("-v0")


def load_runs(folder, published):
    """The tables of runs and of their evaluations. What cannot be read is named and left out."""
    rows, curves = [], []
    for path in sorted(folder.glob("*/*/*/config.json")):
        try:
            row, curve = load_run(path.parent, published)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"left out: {path.parent} cannot be read ({error!r})")
            continue
        rows.append(row)
        curves.append(curve)
    if not rows:
        columns = ["path", "env", "family", "suites", "k", "score", *SWEEP]
        return pd.DataFrame(columns=columns), pd.DataFrame(columns=columns)
    runs = pd.DataFrame(rows).sort_values(["task", "variant", "k", "seed"])
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
    """The runs of the longest sweeps with means of train.csv over the last tenth of training."""
    ks = runs.groupby(SWEEP).k.transform("nunique")
    rows = []
    for _, run in runs[ks == ks.max()].iterrows():
        if (run.path / "train.csv").exists():
            log = pd.read_csv(run.path / "train.csv")[[*MEASURES]]
            rows.append({**run, **log.tail(max(len(log) // 10, 1)).mean()})
    return pd.DataFrame(rows)


def load_runtime(path):
    """Median ms per update of each method and code. The rounds of released_code.csv are used where
    that lies beside bench.csv, since only times of one round are comparable."""
    released = path.with_name("released_code.csv")
    try:
        bench = pd.read_csv(path)
        hardware = bench[HARDWARE].iloc[0]
        rounds = bench.assign(released_ms=math.nan)
        if released.exists():
            rounds = pd.read_csv(released)
        rounds["code"] = "this code"
        if "routing_dtype" in rounds:
            rounds.loc[rounds.routing_dtype == "bfloat16", "code"] += ", routing in bfloat16"
        rounds["times_as_fast"] = rounds.released_ms / rounds.update_ms
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise drol.UserError(f"{path} or {released} is not usable: {error!r}") from error
    theirs = rounds[["method"]].assign(code="released code", update_ms=rounds.released_ms)
    both = pd.concat([rounds, theirs]).dropna(subset="update_ms")
    table = both.groupby(["method", "code"], sort=False)[["update_ms", "times_as_fast"]].median()
    return table.reset_index().assign(**hardware)


def load_dataset(run, data_dir):
    """The transitions that a run was trained on, as tensors. Raises UserError for others."""
    task, _ = drol.find_task(run.env)
    folder = Path(data_dir or run.config["settings"]["data_dir"])
    path = folder / f"{task.dataset}.npz"
    if not path.exists():
        raise drol.UserError(f"{path}, the data of {run.path}, is not there; give --data-dir")
    data, facts = drol.load_data(task, folder, "cpu")
    if facts["fingerprint"] != run.config["data"]["fingerprint"]:
        raise drol.UserError(f"{path} is not the data of {run.path}; give --data-dir")
    return data


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
    row = {"tasks": scores.shape[1], "seeds": len(scores), "mean": per_seed.mean(),
           "std": per_seed.std(), "iqm": math.nan, "iqm_low": math.nan, "iqm_high": math.nan}
    samples = list(scores.to_numpy().T)
    if len(scores) > 0:
        row["iqm"] = iqm(*samples)
    if len(scores) >= 3:
        bootstrap = stats.bootstrap(samples, iqm, n_resamples=2000, vectorized=False,
                                    method="percentile", rng=np.random.default_rng(0))
        row["iqm_low"], row["iqm_high"] = bootstrap.confidence_interval
    return row


def results(runs):
    """A row per family, method and condition, and one for each method that has not been run."""
    published_scores = pd.read_csv(ROOT / "testdata" / "published_results.csv", index_col="group")
    rows, by_suite = [], runs.explode("suites")
    for family in dict.fromkeys([*published_scores.index, *runs.family]):
        paper = published_scores.loc[family] if family in published_scores.index else {"tasks": 5}
        for suite, column in SUITES.items():
            common = {"family": family, "method": suite, "published": paper.get(column, math.nan),
                      "of_tasks": int(paper["tasks"]), "unfinished": 0}
            mine = by_suite[(by_suite.family == family) & (by_suite.suites == suite)]
            if mine.empty:
                rows.append(common | {"tasks": 0, "seeds": 0, "condition": "not run"})
            for condition, cell in mine.groupby("condition"):
                names = cell.task[cell.score.notna()].str.split(", ").str[-1]  # task 2
                row = {"which": ", ".join(names.unique()), "condition": condition,
                       "unfinished": cell.score.isna().sum()}
                rows.append(common | summary(cell) | row)
    return pd.DataFrame(rows)


RESULTS_HEAD = """\
Success rate in % on OGBench, normalised return x 100 on D4RL. Ours: mean +- standard deviation
over the seeds that have every task; IQM: interquartile mean over their runs, from three seeds on
with its 95 % bootstrap interval. DROL* repeats DROL(16) where the two have the same settings.
Published: the paper's mean over all tasks and 8 seeds; it is comparable only where ours has all
tasks, the published settings and the official data.

| family | method | ours | IQM | published | tasks | seeds | settings and data |
|---|---|---|---|---|---|---|---|
"""


def results_markdown(table):
    lines = []
    for row in table.itertuples():
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
        cells = [row.family, row.method, ours, middle, paper, tasks, str(row.seeds), note]
        lines.append(f"| {' | '.join(cells)} |\n")
    return RESULTS_HEAD + "".join(lines)

"""Tables and figures of the runs in a folder: python -m tools.figures --run-dir runs --out figures

results.md, results.csv   per family and method: our score beside the published one
runs.csv                  per run: its score, its settings and its versions
learning_curves.png       score against updates
ksweep.png                score against K, of runs that differ in K alone
scaling.png               distance of two candidates and cloning loss against K, of those runs

Files of these names in the folder given by --out are overwritten; no other file is touched.
"""

import json
import math
import re
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import tyro
from scipy import stats

import drol
import fql

TESTDATA = Path(__file__).resolve().parents[1] / "testdata"
SUITES = {"DROL(16)": "DROL16", "DROL*": "DROLstar", "FQL": "FQL"}  # in published_results.csv
TUNED = ["bc_coef", "alpha", "discount", "q_agg"]  # published per task
# What config.json holds besides settings that change a score. Any other entry counts as a setting.
NO_SETTINGS = ["algorithm", "versions", "dataset", "env_id", "task", "seed"]
NO_SETTINGS += ["device", "compile", "eval_envs", "data_dir", "run_dir"]
NO_SETTINGS += ["log_interval", "checkpoint_interval"]
SWEEP = ["task", "algorithm", "condition"]  # runs of these differ in K and seed alone
MEASURES = {"distance": "distance of two candidates", "bc_loss": "cloning loss"}
iqm = lambda *samples: stats.trim_mean(np.concatenate(samples), 0.25)  # interquartile mean


@dataclass
class Args:
    run_dir: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables and figures


# -------------------- runs
def as_text(value):
    """A setting's value: 10 and 10.0 alike, lists without brackets."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(as_text, value))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:,.10g}" if is_number else str(value)


def final_score(rows, env_id):
    """A run's score from its evaluations: D4RL's last, else the mean of the last three."""
    last = rows[-1:] if re.fullmatch(drol.D4RL, env_id) else rows[-3:]
    return float(np.mean([row["score"] for row in last]))


def describe(settings, without=()):
    return "; ".join(f"{key} {value}" for key, value in settings.items() if key not in without)


def settings_of(config, published):
    """A run's settings, and those but K that are neither the program's default nor published."""
    program = {"drol": drol, "fql": fql}.get(config["algorithm"])
    usual = {x.name: x.default for x in fields(program.Args)} if program else {}
    suites = published[published.suite != "DROL*"].set_index("method")
    usual |= suites.reindex([config["algorithm"]]).iloc[0][[*TUNED, "steps"]].dropna()
    settings = {key: as_text(x) for key, x in (usual | config).items() if key not in NO_SETTINGS}
    differs = {key: x for key, x in settings.items() if x != as_text(usual.get(key)) and key != "k"}
    return settings, differs


def read_columns(path, columns):
    """Columns of a CSV file, empty where there is no file."""
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    return table.reindex(columns=columns).astype(float)


def load_run(folder, published):
    """A run's row of the table of runs, and its evaluations."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    env, algorithm, k = config["env_id"], config["algorithm"], config.get("k")
    published = published[published.full_name == env]
    curve = read_columns(folder / "eval.csv", ["step", "score"])
    if not np.isfinite(curve).all(axis=None):
        raise ValueError("eval.csv lacks a number")
    config["steps"] = int(max([config["steps"], *curve.step]))
    finished = config["steps"] in set(curve.step)
    settings, differs = settings_of(config, published)
    star = published.query("suite == 'DROL*' and method == @algorithm")[["k", *TUNED]]
    star = star.dropna(axis=1).map(as_text)
    log = read_columns(folder / "train.csv", ["candidate_spread", "bc_loss"])
    log = log.tail(max(len(log) // 10, 1))  # the last tenth of training
    pairs = 2 * k / max(k - 1, 1) if k else math.nan  # from variance to mean over pairs
    return {
        "env": env,
        "family": published.family.iloc[0] if len(published) else env.partition("-singletask")[0],
        "task": env.replace("-singletask", ""),
        "algorithm": algorithm,
        "method": algorithm.upper() + (f"({k})" if k else ""),
        "k": k or math.nan,
        "seed": config["seed"],
        "finished": finished,
        "score": final_score(curve.to_dict("records"), env) if finished else math.nan,
        "condition": describe(differs),
        "star": any(row.items() <= settings.items() for row in star.to_dict("records")),
        "versions": describe(config.get("versions", {})),
        "dataset": config.get("dataset"),
        "distance": (pairs * log.candidate_spread).pow(0.5).mean(),  # root mean square
        "bc_loss": log.bc_loss.mean(),
        "settings": settings,
        "differs": differs,
    }, curve


def load_runs(run_dir):
    """The tables of runs and of their evaluations. What cannot be read is named and left out.
    SystemExit: there is no run, or one is there twice."""
    published, rows, curves = pd.read_csv(TESTDATA / "published_settings.csv"), [], []
    for path in sorted(run_dir.glob("*/*/*/config.json")):
        name = path.parent.relative_to(run_dir).as_posix()
        try:
            row, curve = load_run(path.parent, published)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"left out, as it cannot be read: {name} ({error!r:.200})")
            continue
        rows.append({"run": name} | row)
        curves.append(curve.assign(run=name))
    if not rows:
        sys.exit(f"error: no run in {run_dir}: give --run-dir the folder that the runs were given")
    runs = pd.DataFrame(rows).sort_values(["family", "algorithm", "k", "condition", "env", "seed"])
    same = runs.differs.map(lambda settings: describe(settings, ["steps"]))
    for _, cell in runs.groupby(["env", "method", "seed", same]):
        if len(cell) > 1:
            sys.exit(
                f"error: {' and '.join(cell.run)} are one task, method and seed: move one away"
            )
    return runs, pd.concat(curves).merge(runs.drop(columns="score"), on="run")


# -------------------- tables
def summary(scores):
    """Of a table with a row per seed and a column per task, of the seeds that have all: mean and
    deviation; interquartile mean of the runs, its 95 % bootstrap interval, stratified by task."""
    complete = scores.dropna()
    means, samples = complete.mean(axis=1), list(complete.to_numpy().T)
    row = dict(tasks=scores.shape[1], seeds=len(complete), mean=means.mean(), std=means.std())
    if row["seeds"]:
        row["iqm"] = iqm(*samples)
    if row["seeds"] > 2:
        how = {"n_resamples": 2000, "vectorized": False, "method": "percentile", "rng": 0}
        row["iqm_low"], row["iqm_high"] = stats.bootstrap(samples, iqm, **how).confidence_interval
    return row


def results(runs):
    """A row per family, method and condition, and one for a family's published methods not run."""
    published = pd.read_csv(TESTDATA / "published_results.csv", index_col="group")
    without_tuned = runs.differs.map(lambda settings: describe(settings, TUNED))
    stars = runs.assign(method="DROL*", condition=without_tuned)[runs.star]
    rows = []
    for family, cells in pd.concat([runs, stars]).groupby("family", sort=False):
        paper = published.loc[family] if family in published.index else {}
        of_tasks = int(paper.get("tasks", cells.env.nunique()))
        groups = list(cells.groupby(["method", "condition"], sort=False))
        missing = SUITES.keys() - set(cells.method) if len(paper) else []
        groups += [((method, "not run"), cells.iloc[:0]) for method in sorted(missing)]
        for (method, condition), cell in groups:
            row = {"family": family, "method": method, "condition": condition}
            row |= summary(cell[cell.finished].pivot(index="seed", columns="env", values="score"))
            row |= {"of_tasks": of_tasks, "unfinished": (~cell.finished).sum()}
            tuned = any({*TUNED} & differs.keys() for differs in cell.differs)
            if method == "DROL*" or not tuned:
                row["published"] = paper.get(SUITES.get(method))
            rows.append(row)
    columns = ["family", "method", "mean", "std", "iqm", "iqm_low", "iqm_high", "published"]
    columns += ["tasks", "of_tasks", "seeds", "unfinished", "condition"]
    return pd.DataFrame(rows, columns=columns)


HEAD = """\
Ours: mean +- standard deviation over the seeds that have all tasks of the row. IQM: interquartile
mean of their runs and its 95 % bootstrap interval. Published: the papers' mean over all tasks and
eight seeds; comparable only where ours has all tasks, no settings that differ, and the official
data, which no program can tell from collected data. DROL* has the best K of each family.

| family | method | ours | IQM | published | tasks | seeds | unfinished | settings that differ |
|---|---|---|---|---|---|---|---|---|
"""


def line_of(row):
    """A row of the table of results as Markdown."""
    numbers = [
        f"{row.mean:.1f} +- {row.std:.1f}".removesuffix(" +- nan"),
        f"{row.iqm:.1f} [{row.iqm_low:.1f}, {row.iqm_high:.1f}]".removesuffix(" [nan, nan]"),
        f"{row.published:.0f}",
    ]
    numbers = [number.replace("nan", "-") for number in numbers]
    counts = [f"{row.tasks} of {row.of_tasks}", f"{row.seeds}", f"{row.unfinished}"]
    return f"| {' | '.join([row.family, row.method, *numbers, *counts, row.condition])} |\n"


def notes(runs, column):
    """A note for each value of a column but the commonest: which runs have it."""
    counts = runs[column].value_counts()
    for value in counts.index[1:]:
        cell = runs[runs[column] == value]
        where = (cell.task + " " + cell.method + " seed " + cell.seed.astype(str)).unique()
        yield f"\nOther {column} than most ({counts.index[0]}): {value} in {', '.join(where)}.\n"


def write_tables(runs, out):
    table, finished = results(runs), runs[runs.finished]
    lines = [line_of(row) for row in table.itertuples()]
    of_data = [note for _, cell in finished.groupby("env") for note in notes(cell, "dataset")]
    text = "".join([HEAD, *lines, *notes(finished, "versions"), *of_data])
    print(text)
    (out / "results.md").write_text(text, encoding="utf-8")
    table.to_csv(out / "results.csv", index=False)
    columns = ["run", "env", "algorithm", "seed", "finished", "score", "versions", "dataset"]
    settings = pd.DataFrame(list(runs.settings), index=runs.index)
    runs[columns].join(settings).to_csv(out / "runs.csv", index=False)


# -------------------- figures
def panels(table, names, **options):
    """A panel for each value of the column col, a line for each name and the settings that not all
    runs have: mean, lowest and highest seed. The legend's title is the settings that all have."""
    common = dict(set.intersection(*[set(differs.items()) for differs in table.differs]))
    rest = table.differs.map(lambda differs: describe(differs, common))
    table = table.assign(label=(names + "; " + rest).str.removesuffix("; "))
    labels, count = table.label.nunique(), table[options["col"]].nunique()
    columns = min(count, 3 if count < 10 else 5)
    options |= {"col_wrap": columns, "height": 2.4, "aspect": 1.3, "marker": "o"}
    options["palette"] = sns.color_palette("colorblind" if labels <= 10 else "husl", labels)
    options["facet_kws"] = {"sharex": False, "sharey": False, "legend_out": False}
    grid = sns.relplot(table, kind="line", hue="label", errorbar=("pi", 100), **options)
    title = textwrap.fill(describe(dict(sorted(common.items()))), 45 * columns)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": min(columns, labels)}
    sns.move_legend(grid, title=title, frameon=False, **place)
    return grid.set_titles("{col_name}", size=9)


def show_scores(grid):
    """0 to 100 is shown whole, but for own tasks, whose scores may have another scale."""
    for task, axis in grid.axes_dict.items():
        low, high = axis.get_ylim()
        if ":" not in task:
            axis.set_ylim(min(low, -3), max(high, 103))
    return grid


def learning_curves(curves):
    """Of a sweep over more than three K, the paper's two are drawn."""
    many = curves.groupby(SWEEP).k.transform("nunique") > 3
    curves = curves[~many | (curves.k == 16) | curves.star].assign(updates=curves.step / 1000)
    names = curves.method + curves.finished.map({True: "", False: " (unfinished)"})
    grid = show_scores(panels(curves, names, col="task", x="updates", y="score"))
    return grid.set(xlim=(0, None)).set_xlabels("thousand updates")


def sweeps(runs):
    """The finished runs that differ in K alone."""
    runs = runs[runs.finished & runs.k.notna()].sort_values("k")
    runs["K"] = runs.k.map("{:.0f}".format)  # as text: at equal distances
    return runs[runs.groupby(SWEEP).k.transform("nunique") > 1]


def ksweep(runs):
    axes = {"col": "task", "x": "K", "y": "score", "err_style": "bars"}
    return show_scores(panels(runs, runs.algorithm.str.upper(), **axes))


def scaling(runs):
    """Of the sweeps with the most K."""
    ks = runs.groupby(SWEEP).k.transform("nunique")
    table = runs[ks == ks.max()].rename(columns=MEASURES)
    table = table.melt(["task", "differs", "K"], MEASURES.values(), "measure")
    grid = panels(table, table.task, col="measure", x="K", y="value", err_style="bars")
    return grid.set(ylim=(0, None)).set_ylabels("per action dimension")


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    run_dir, out = (drol.attempt(f"{x}", x.expanduser) for x in (args.run_dir, args.out))
    sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show
    runs, curves = load_runs(run_dir)
    figures = [(learning_curves, curves), (ksweep, sweeps(runs)), (scaling, sweeps(runs))]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_tables(runs, out)
        for figure, rows in figures:
            path = out / f"{figure.__name__}.png"
            old = ", an old file is left" if path.exists() else ""
            if len(rows):
                figure(rows).savefig(path, dpi=150)
            print(path if len(rows) else f"{path}: nothing to draw{old}")
    except OSError as error:
        sys.exit(f"error: --out {out} cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()

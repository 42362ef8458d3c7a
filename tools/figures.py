"""Tables and figures out of the folders of runs: whatever is there, and 'not run' for what is not.

    python tools/figures.py --run-dir runs --out figures

results.md and .csv   each family and method: our score over seeds, its interquartile mean, the published one
learning_curves       score against updates, a panel a task
ksweep                score against K, a panel a task; the best K of each is printed beside the published K*
scaling               distance and cloning loss of the candidates against K (mean of the last tenth of training)
runtime               milliseconds an update and an action, from tools/bench.py's CSV
voronoi               routing before and after one real update (needs a DROL run made with --snapshot-interval)

Every figure is a PNG with a CSV of its numbers beside it. A run on locally collected data is marked 'local data'.
"""

import csv
import json
import math
import re
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import matplotlib as mpl
import numpy as np
import torch
import tyro
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # where drol.py and fql.py are
mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import drol  # noqa: E402

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")  # Okabe and Ito's
MARKERS = "osD^vPX*<"  # another length than the colours', so that the pairs repeat late
SUITES = ("DROL(16)", "DROL*", "FQL")


@dataclass
class Args:
    run_dir: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables and figures
    bench: Path | None = None  # tools/bench.py's CSV; unset: bench.csv in the folder of the runs
    data_dir: Path | None = None  # the datasets, for the Voronoi figure; unset: where its run found them
    only: tuple[Literal["results", "learning_curves", "ksweep", "scaling", "runtime", "voronoi"], ...] = ()  # unset: all
    voronoi: Path | None = None  # run folder of the Voronoi figure; unset: the first with K > 1 and two snapshots


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    """Rows, dicts of the same keys, as a CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path)


# ---------------------------------------------------------------------------------------------------- runs


def published():
    """{environment: {suite: its row of published_settings.csv}} and {group: its row of published_results.csv}."""
    settings = defaultdict(dict)
    for row in read(ROOT / "testdata" / "published_settings.csv"):
        settings[row["full_name"]][row["suite"]] = row
    return settings, {row["group"]: row for row in read(ROOT / "testdata" / "published_results.csv")}


def load_run(path, settings):
    """A run's folder as a namespace. score: what the paper reports of a run, None where it has not finished."""
    config = json.loads((path / "config.json").read_text())
    args, env, data, origin = (config[key] for key in ("settings", "env", "data", "origin"))
    curve = [(int(row["step"]), float(row["score"])) for row in read(path / "eval.csv")] \
        if (path / "eval.csv").exists() else []
    finished = curve and curve[-1][0] >= args["steps"]
    last = 1 if env["task"] is None else 3
    hidden = drol.NOT_HASHED | {"k", "bc_coef", "alpha", "eval_envs"}
    text = lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value)
    condition = [f"{curve[-1][0] if finished else args['steps']:,} updates"]
    condition += [f"{name} {text(value)}" for name, value in args.items()
                  if origin[name] == "command line" and name not in hidden]
    local = data["source"].startswith("collected locally")
    made = data["source"].removeprefix("collected locally: ").split(", ogbench")[0]  # a fingerprint is one task's only
    condition += [f"local data ({made})"] * local
    condition += [data["simulator"]] * data["simulator"].startswith("mujoco_py ")
    group = env["preset"] if env["name"] in settings else env["dataset"].removesuffix("-v0")
    if env["task"] is None:
        group = "d4rl-antmaze" if "antmaze" in env["name"] else "d4rl-adroit"
    return SimpleNamespace(
        path=path, config=config, algorithm=config["algorithm"], settings=args, seed=args["seed"], name=env["name"],
        task=env["name"].replace("-singletask", "").removesuffix("-v0"), group=group, curve=curve, local=local,
        score=float(np.mean([score for _, score in curve[-last:]])) if finished else None,
        condition=", ".join(condition))


def load_runs(folder, settings):
    """Every run below a folder. One that cannot be read is named and left out."""
    runs = []
    for path in sorted(folder.glob("*/*/*/config.json")):
        try:
            runs.append(load_run(path.parent, settings))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"left out: {path.parent} cannot be read ({error!r})")
    return runs


def label(run):
    k, origin = run.settings.get("k"), run.config["origin"]
    name = {"drol": f"DROL K = {k}", "fql": "FQL"}[run.algorithm]
    flag = {"drol": "bc_coef", "fql": "alpha"}[run.algorithm]
    return name + (f", {flag} {run.settings[flag]:g}" if origin[flag] == "command line" else "")


def in_suite(run, suite, settings):
    """Whether a run has the settings that the suite (DROL(16), DROL* or FQL) has for the run's environment."""
    row = settings.get(run.name, {}).get(suite)
    if row is None:  # not a published environment: the settings that the program takes for it
        own = "alpha" if suite == "FQL" else "bc_coef"
        return suite != "DROL*" and run.algorithm == row_method(suite) and run.settings.get("k", 16) == 16 \
            and run.config["origin"][own] != "command line"
    return run.algorithm == row["method"] and all(
        run.settings[name] == (row[name] if name == "q_agg" else float(row[name]))
        for name in ("k", "bc_coef", "alpha", "discount", "q_agg") if row[name])


def row_method(suite):
    return "fql" if suite == "FQL" else "drol"


def by(runs, key):
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    natural = lambda item: re.sub(r"\d+", lambda number: number[0].zfill(9), str(item[0]))  # K = 4 before K = 16
    return dict(sorted(groups.items(), key=natural))


# --------------------------------------------------------------------------------------------------- table


def summary(runs):
    """Mean and standard deviation over seeds (of a seed's mean over tasks), and the runs' interquartile mean.

    The interval is the 95 % percentile bootstrap's, stratified by task, as rliable has it."""
    tasks = by(runs, lambda run: run.name)
    seeds = [seed for seed, group in by(runs, lambda run: run.seed).items() if len(group) == len(tasks)]
    runs = [run for run in runs if run.seed in seeds]  # those that have every task
    means = [np.mean([run.score for run in runs if run.seed == seed]) for seed in seeds]
    numbers = {"tasks": len(tasks), "seeds": len(seeds), "mean": np.mean(means) if seeds else math.nan,
               "std": np.std(means, ddof=1) if len(seeds) > 1 else math.nan}
    iqm = lambda *tasks: stats.trim_mean(np.concatenate(tasks), 0.25)
    scores = [np.array([run.score for run in group]) for group in by(runs, lambda run: run.name).values()]
    low = high = math.nan
    if len(seeds) > 2:
        low, high = stats.bootstrap(scores, iqm, n_resamples=2000, vectorized=False, method="percentile",
                                    rng=np.random.default_rng(0)).confidence_interval
    return numbers | {"iqm": iqm(*scores) if seeds else math.nan, "iqm_low": low, "iqm_high": high}


def results(runs, settings, published_results, out):
    rows, groups = [], list(published_results)
    groups += sorted({run.group for run in runs} - set(groups))
    for group in groups:
        row = published_results.get(group, {})
        for suite in SUITES:
            paper = row.get({"DROL(16)": "DROL16", "DROL*": "DROLstar", "FQL": "FQL"}[suite]) or "not published"
            of_suite = [run for run in runs if run.group == group and in_suite(run, suite, settings)]
            cells = by([run for run in of_suite if run.score is not None], lambda run: run.condition)
            common = {"family": group, "method": suite, "published": paper, "of_tasks": row.get("tasks", 5)}
            for i, (condition, cell) in enumerate((cells or {"not run": []}).items()):
                unfinished = sum(run.score is None for run in of_suite) if i == 0 else 0
                numbers = summary(cell) if cell else dict.fromkeys(
                    ("tasks", "seeds", "mean", "std", "iqm", "iqm_low", "iqm_high"), "not run")
                which = ", ".join(sorted({str(run.config["env"]["task"] or run.task) for run in cell}))
                rows.append(common | numbers | {"which": which, "condition": condition, "unfinished": unfinished})
    write(out / "results.csv", rows)
    lines = ["Success rate in % on OGBench, normalised return x 100 on D4RL. Ours: mean +- standard deviation over the",
             "seeds that have every task; IQM: interquartile mean over their runs, from three seeds on with its 95 %",
             "bootstrap interval. DROL* repeats DROL(16) where the two have the same settings.",
             "Published: the paper's mean over all tasks and 8 seeds; it is comparable only where ours has all tasks,",
             "the published settings and the official data.", "",
             "| family | method | ours | IQM | published | tasks | seeds | settings and data |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        ours, iqm, tasks = "not run", "not run", f"0 of {row['of_tasks']}"
        if row["mean"] != "not run":
            ours, iqm = ("-" if math.isnan(row[name]) else f"{row[name]:.1f}" for name in ("mean", "iqm"))
            ours += f" +- {row['std']:.1f}" * (row["seeds"] > 1)
            if row["seeds"] > 2:
                iqm += f" [{row['iqm_low']:.1f}, {row['iqm_high']:.1f}]"
            tasks = f"{row['tasks']} of {row['of_tasks']}"
            tasks += f" (task {row['which']})" * (row["tasks"] < int(row["of_tasks"]))
        note = row["condition"] + (f" ({row['unfinished']} unfinished left out)" if row["unfinished"] else "")
        seeds = 0 if row["seeds"] == "not run" else row["seeds"]
        lines.append(f"| {row['family']} | {row['method']} | {ours} | {iqm} | {row['published']} | {tasks} | {seeds} "
                     f"| {note} |")
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print(out / "results.md")


# ------------------------------------------------------------------------------------------------- figures


def panels(count, width=3.2, height=2.6):
    """A figure and count axes, at most five a row, four as a square."""
    columns = 2 if count == 4 else min(count, 5)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns + 0.6, height * rows + 0.7), squeeze=False,
                                layout="constrained")
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat[:count])


def finish(figure, path, title, runs):
    title += " (local data)" * (any(run.local for run in runs) and "local data" not in title)
    figure.suptitle(textwrap.fill(title, int(13 * figure.get_figwidth())), fontsize=9)
    figure.savefig(path, dpi=200)
    plt.close(figure)
    print(path)


def deviation(values):
    """Sample standard deviation, nan for a single value: nothing is drawn of it then."""
    return np.std(values, ddof=1) if len(values) > 1 else math.nan


def line(axis, x, values, index, name, bars=False):
    """Mean over seeds. values: for each x a list of the seeds' scores. Around it, from three seeds on, a band of one
    standard deviation, of fewer their own thin lines; or, with bars, a bar of one and a point for each seed."""
    mean, std = np.array([np.mean(v) for v in values]), np.array([deviation(v) for v in values])
    style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
    axis.errorbar(x, mean, std if bars else None, markersize=4, linewidth=1.5, elinewidth=1, capsize=3, label=name,
                  **style)
    if bars:
        for point, seeds in zip(x, values, strict=True):
            axis.plot([point] * len(seeds), seeds, ".", color=style["color"], markersize=3)
    elif min(map(len, values), default=0) > 2:
        axis.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)
    else:
        axis.plot(x, values, color=style["color"], linewidth=0.5, alpha=0.5)


def learning_curves(runs, out):
    tasks, rows = by(runs, lambda run: run.task), []
    conditions = {run.condition for run in runs}
    styles = list(by(runs, label))  # a method looks the same in every panel with one condition
    figure, axes = panels(len(tasks))
    for axis, (task, group) in zip(axes, tasks.items(), strict=True):
        cells = by(group, lambda run: (label(run), run.condition))
        several = len({condition for _, condition in cells}) > 1
        for index, ((name, condition), cell) in enumerate(cells.items()):
            points = defaultdict(list)
            for run in cell:
                for step, score in run.curve:
                    points[step].append(score)
            steps = [step for step in sorted(points) if len(points[step]) == len(cell)]  # where all seeds are
            text = f"{name} ({len(cell)} seed{'s' * (len(cell) > 1)})"
            text += f"\n{textwrap.fill(condition, 60)}" * several
            line(axis, steps, [points[step] for step in steps], index if several else styles.index(name), text)
            rows += [{"task": task, "method": name, "condition": condition, "step": step, "seeds": len(cell),
                      "mean": np.mean(points[step]), "std": deviation(points[step])} for step in steps]
        common = "" if len(conditions) == 1 or several else group[0].condition
        axis.set_title(f"{task}\n{textwrap.fill(common, 60)}".strip(), fontsize=6 if common else 8)
        axis.set_xlabel("updates", fontsize=8)
        axis.set_ylabel("score", fontsize=8)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, -4), max(high, 104))  # so that no 4 % looks like a summit
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False, borderpad=0,
                    ncols=2 if len(cells) > 4 and not several else 1)
    write(out / "learning_curves.csv", rows)
    extra = f": {conditions.pop()}" if len(conditions) == 1 else ""
    finish(figure, out / "learning_curves.png", f"Learning curves, mean over seeds{extra}", runs)


def sweeps(runs):
    """{(task, condition): {K: runs}} of the DROL runs that differ in K alone, where there are two K or more."""
    drol_runs = [run for run in runs if run.algorithm == "drol"]
    but_k = lambda run: run.condition + label(run).removeprefix(f"DROL K = {run.settings['k']}")
    found = by(drol_runs, lambda run: (run.task, but_k(run)))
    found = {key: by(group, lambda run: run.settings["k"]) for key, group in found.items()}
    return {key: dict(sorted(group.items())) for key, group in found.items() if len(group) > 1}


def ksweep(runs, settings, out):
    finished = sweeps([run for run in runs if run.score is not None])
    rows, used = [], [run for group in finished.values() for cell in group.values() for run in cell]
    figure, axes = panels(max(len(finished), 1))
    for axis, ((task, condition), group) in zip(axes, finished.items(), strict=False):
        scores = [[run.score for run in cell] for cell in group.values()]
        means = [np.mean(values) for values in scores]
        best = [k for k, mean in zip(group, means, strict=True) if mean == max(means)]
        best_text = ", ".join(map(str, best))
        star = settings.get(next(iter(group.values()))[0].name, {}).get("DROL*", {}).get("k", "not published")
        seeds = sorted({len(values) for values in scores})
        print(f"  {task}: best K {best_text}, published K* {star} ({condition}, seeds: {', '.join(map(str, seeds))})")
        line(axis, list(group), scores, 0, None, bars=True)
        if seeds[-1] > 1:
            axis.plot(best, [max(means)] * len(best), marker="*", markersize=13, color=COLORS[1], linestyle="none",
                      zorder=5, label=f"highest mean: {best_text}")
            axis.legend(fontsize=7)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(group), list(group))
        seeds = f"{' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seed{'s' * (seeds[-1] > 1)} a point"
        axis.set_title(f"{task}\n{textwrap.fill(condition, 60)}\n{seeds}", fontsize=6)
        axis.set_xlabel("K", fontsize=8)
        axis.set_ylabel("score", fontsize=8)
        axis.tick_params(labelsize=7)
        rows += [{"task": task, "condition": condition, "k": k, "seeds": len(values), "mean": np.mean(values),
                  "std": deviation(values), "best_k": best_text, "published_k": star}
                 for k, values in zip(group, scores, strict=True)]
    write(out / "ksweep.csv", rows)
    finish(figure, out / "ksweep.png", "Score against the number of candidates K", used)


def scaling(found, out):
    """found: what sweeps returns."""
    rows = []
    longest = max(len(group) for group in found.values())
    found = {key: group for key, group in found.items() if len(group) == longest}  # the paper's three have K = 64 too
    figure, (left, right) = panels(2, 4.2, 3.2)
    inset = left.inset_axes([0.62, 0.14, 0.35, 0.34])
    columns = ("pairwise_distance", "bc_loss", "candidate_spread")
    for index, ((task, condition), group) in enumerate(found.items()):
        values = {column: [] for column in columns}
        for k, cell in group.items():
            tails = [read(run.path / "train.csv") for run in cell]
            tails = [tail[-max(len(tail) // 10, 1):] for tail in tails]
            means = {column: [np.mean([float(row[column]) for row in tail]) for tail in tails] for column in columns}
            for column in columns:
                values[column].append(means[column])
            rows.append({"task": task, "condition": condition, "k": k, "seeds": len(cell)}
                        | {column: np.mean(means[column]) for column in columns}
                        | {f"{column}_std": deviation(means[column]) for column in columns})
        name = task + " (local)" * any(run.local for cell in group.values() for run in cell)
        name += f"\n{condition}" * ([other for other, _ in found].count(task) > 1)
        line(left, list(group), values["pairwise_distance"], index, name, bars=True)
        line(right, list(group), values["bc_loss"], index, name, bars=True)
        spread = [[math.log10(value) for value in seeds if value > 0] or [math.nan] for seeds in
                  values["candidate_spread"]]
        line(inset, list(group), spread, index, None, bars=True)
    for axis, name in ((left, "pairwise distance"), (right, "BC loss of the winner"), (inset, "log10 spread")):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("K" if axis is not inset else "", fontsize=8)
        axis.set_ylabel(name, fontsize=8 if axis is not inset else 6)
        axis.tick_params(labelsize=7 if axis is not inset else 5)
    right.set_ylim(bottom=0)
    right.legend(fontsize=7)
    write(out / "scaling.csv", rows)
    finish(figure, out / "scaling.png", "Candidates against K, per action dimension, last tenth of training",
           [run for group in found.values() for cell in group.values() for run in cell])


def runtime(path, out):
    rows = read(path)
    figure, axes = panels(2, 3.6, 2.8)
    names = [row["method"] for row in rows]
    for axis, column, title in ((axes[0], "update_ms", "training, ms an update"),
                                (axes[1], "action_ms", "acting, ms an action")):
        values = [float(row[column]) for row in rows]
        bars = axis.bar(names, values, color=[COLORS[1] if name == "FQL" else COLORS[0] for name in names],
                        hatch=["//" if name == "FQL" else "" for name in names], edgecolor="white")
        axis.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_xticks(range(len(names)), names, rotation=30)
    write(out / "runtime.csv", rows)
    first = rows[0]
    finish(figure, out / "runtime.png", f"{first['device']}, batch {first['batch_size']}, hidden widths "
           f"{first['hidden_dims']}, {first['observation_dim']} observations, {first['action_dim']} actions", [])


# ------------------------------------------------------------------------------------------------- Voronoi


def one_update(path, run, data):
    """A snapshot's candidates, winners and critic on a batch of the data, and those after one real update on it."""
    saved = drol.load_checkpoint(path, "cpu")
    networks = drol.make_networks(*saved["dims"], torch.Generator())
    networks.load_state_dict(saved["networks"])
    optimizer = torch.optim.Adam(networks.parameters(), lr=run.settings["lr"], fused=True)
    optimizer.load_state_dict(saved["optimizer"])
    args, generator = SimpleNamespace(**run.settings), drol.make_generator("cpu", 0)
    batch = drol.sample_batch(data, args.batch_size, generator)
    noise = drol.sample_noise(args.batch_size, saved["dims"][1], args, generator)
    state = SimpleNamespace(step=saved["step"], batch=batch, critic=drol.copy.deepcopy(networks["critic"]))
    for moment in ("before", "after"):
        candidates = drol.sample_candidates(networks["actor"], batch["observations"], noise["latents"])
        setattr(state, moment, candidates)  # (B, K, A)
        setattr(state, f"winner_{moment}", drol.route(candidates, batch["actions"]))  # (B,)
        if moment == "before":
            drol.update(networks, optimizer, batch, noise, args)
    return state


@torch.no_grad()
def draw_cells(axis, state, i, title, switch):
    """State i of a batch: the plane through its dataset action a along the candidates' two widest directions."""
    a, before, after = state.batch["actions"][i], state.before[i], state.after[i]
    basis = torch.eye(2) if len(a) == 2 else torch.linalg.svd(before - before.mean(0)).Vh[:2]  # (2, A)
    flat = lambda x: ((x - a) @ basis.T).numpy()  # a lies at the origin
    points, moved = flat(before), flat(after)
    low, high = np.minimum(points.min(0), 0), np.maximum(points.max(0), 0)
    reach = 0.6 * max(*(high - low), 0.05)
    (x0, y0), size = (low + high) / 2, 300
    x, y = np.meshgrid(np.linspace(x0 - reach, x0 + reach, size), np.linspace(y0 - reach, y0 + reach, size))
    grid = a + torch.tensor(np.stack([x.ravel(), y.ravel()], 1), dtype=torch.float32) @ basis  # (size^2, A)
    cell = torch.cdist(grid, before).argmin(1).view(size, size)
    inside = (grid.abs().amax(1) <= 1).view(size, size)
    s = state.batch["observations"][i].expand(len(grid), -1)
    q = state.critic(s, grid.clamp(-1, 1)).amin(0).view(size, size)
    old, new = state.winner_before[i].item(), state.winner_after[i].item()
    axis.contourf(x, y, (cell == old).float(), levels=[0.5, 1.5], colors=["#DCEAF7"])
    with plt.rc_context({"hatch.color": "#BBBBBB"}):
        axis.contourf(x, y, (~inside).float(), levels=[0.5, 1.5], colors=["none"], hatches=["////"])
    for k in cell.unique().tolist():
        axis.contour(x, y, (cell == k).float(), levels=[0.5], colors="black", linewidths=0.6)
    contours = axis.contour(x, y, np.ma.masked_where(~inside.numpy(), q.numpy()), levels=7, cmap="viridis",
                            linewidths=0.9, linestyles="--")
    axis.clabel(contours, fontsize=5, fmt="%.4g")
    axis.plot(*points.T, "o", color="#666666", markersize=4, label="candidates")
    axis.plot(0, 0, "*", color="#D55E00", markersize=13, label="dataset action", zorder=5)
    axis.plot(*points[old], "o", markersize=11, markerfacecolor="none", markeredgecolor="#0072B2",
              markeredgewidth=2, label="winner before")
    if switch:
        axis.plot(*points[new], "s", markersize=11, markerfacecolor="none", markeredgecolor="#CC79A7",
                  markeredgewidth=2, label="winner after")
    move = moved[old] - points[old]
    room = max(0.4 * reach / max(np.linalg.norm(move), 1e-9), 1)
    power = 10 ** math.floor(math.log10(room))
    scale = max(step * power for step in (1, 2, 5) if step * power <= room)
    axis.annotate("", points[old] + scale * move, points[old], zorder=6,
                  arrowprops={"arrowstyle": "-|>", "color": "#0072B2", "linewidth": 1.8})
    axis.plot([], [], color="#0072B2", marker=">", label="its move in the update, enlarged")
    axis.set(xlim=(x0 - reach, x0 + reach), ylim=(y0 - reach, y0 + reach), aspect="equal")
    axis.set_xlabel("first direction from the dataset action", fontsize=7)
    axis.set_ylabel("second direction", fontsize=7)
    axis.set_title(f"{title}\nafter {state.step:,} updates; arrow x {scale:,.0f}", fontsize=8)
    axis.tick_params(labelsize=6)
    axis.grid(visible=False)
    distance = lambda x: (x - a).norm(dim=-1).tolist()
    return [{"panel": title, "updates": state.step, "state": i, "candidate": k, "x": points[k][0], "y": points[k][1],
             "x_after": moved[k][0], "y_after": moved[k][1], "distance": d0, "distance_after": d1,
             "winner_before": int(k == old), "winner_after": int(k == new)}
            for k, (d0, d1) in enumerate(zip(distance(before), distance(after), strict=True))]


def voronoi(run, out, data_dir):
    snapshots = sorted(run.path.glob("snapshot*.pt"), key=lambda path: int(path.stem.removeprefix("snapshot")))
    if run.settings.get("k", 1) == 1 or len(snapshots) < 2:
        raise drol.UserError(f"{run.path} is no DROL run with K > 1 and two snapshots (--snapshot-interval)")
    name = Path(run.config["data"]["path"]).name
    folder = data_dir or Path(run.config["data"]["path"]).parent
    if not (folder / name).exists():
        raise drol.UserError(f"{folder / name}, on which {run.path} was trained, is not there; give --data-dir")
    splits, report = drol.load_data(drol.find_env(run.name), folder, torch.device("cpu"))
    if report["fingerprint"] != run.config["data"]["fingerprint"]:
        raise drol.UserError(f"{folder / name} is other data than {run.path} was trained on; give --data-dir")
    states = [one_update(path, run, splits[0]) for path in snapshots]
    first, last = states[0], states[-1]
    spread = lambda state: state.before.var(1, correction=0).mean(-1)  # (B,)
    chosen = [("candidates spread out (structure)", first, spread(first).argmax().item(), False)]
    switched = [(state, (state.winner_before != state.winner_after).nonzero().flatten()) for state in states]
    switched = next(((state, index) for state, index in switched if len(index)), None)
    if switched:
        state, index = switched
        ends = [state.before[index, winner[index]] for winner in (state.winner_before, state.winner_after)]
        farthest = index[(ends[0] - ends[1]).norm(dim=-1).argmax()].item()  # so that the two are seen apart
        share = f"{len(index)} of {len(state.before)} states"
        chosen.append((f"the winner changes (reassignment; {share})", state, farthest, True))
    kept = (last.winner_before == last.winner_after).float()
    if kept.any():
        chosen.append((f"the winner stays (stable; {int(kept.sum())} of {len(kept)} states)", last,
                       (spread(last) * kept).argmax().item(), False))
    figure, axes = panels(len(chosen), 4.2, 4.8)
    rows = []
    for axis, (title, state, i, switch) in zip(axes, chosen, strict=True):
        rows += draw_cells(axis, state, i, title, switch)
    write(out / "voronoi.csv", rows)
    handles = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    plane = "the action space" if splits[0]["actions"].shape[1] == 2 else \
        "candidates projected on the plane of their widest spread, cells cut by it"
    finish(figure, out / "voronoi.png", f"{run.task}, K = {run.settings['k']}, {plane}; blue: the winner's "
           f"cell; dashed: min Q; hatched: outside the action bounds", [run])


# ---------------------------------------------------------------------------------------------------- main


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    settings, published_results = published()
    if not args.run_dir.is_dir() or (args.bench and not args.bench.exists()):
        sys.exit(f"error: there is no {args.bench if args.run_dir.is_dir() else args.run_dir}")
    runs = load_runs(args.run_dir, settings)
    with_curve = [run for run in runs if run.curve]
    swept = sweeps([run for run in runs if run.score is not None])
    trained = sweeps([run for run in runs if run.score is not None and (run.path / "train.csv").exists()])
    bench = args.bench or args.run_dir / "bench.csv"
    drawable = [run for run in runs
                if run.settings.get("k", 1) > 1 and len(list(run.path.glob("snapshot*.pt"))) > 1]
    failed = False
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.voronoi:
            drawable = [load_run(args.voronoi, settings)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: --out {args.out} or --voronoi {args.voronoi} cannot be used ({error})")
    for name, ready, draw in (
            ("results", True, lambda: results(runs, settings, published_results, args.out)),
            ("learning_curves", with_curve, lambda: learning_curves(with_curve, args.out)),
            ("ksweep", swept, lambda: ksweep(runs, settings, args.out)),
            ("scaling", trained, lambda: scaling(trained, args.out)),
            ("runtime", bench.exists(), lambda: runtime(bench, args.out)),
            ("voronoi", drawable, lambda: voronoi(drawable[0], args.out, args.data_dir))):
        if args.only and name not in args.only:
            continue
        try:
            for old in args.out.glob(f"{name}.*"):
                old.unlink()  # so that none of an earlier call is taken for a new one
            draw() if ready else print(f"{name}: not run")
        except (drol.UserError, OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            failed = True  # RuntimeError: a checkpoint whose networks are others
            print(f"error: {name}: {' '.join(str(error).split()):.300}", file=sys.stderr)
    sys.exit(1 if failed else None)


if __name__ == "__main__":
    main()

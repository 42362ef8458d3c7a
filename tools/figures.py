"""Tables and figures from the folders of runs: whatever is there, and 'not run' for what is not.

    python tools/figures.py --run-dir runs --out figures

results            per family and method: our score, its interquartile mean, the published one
learning_curves    score against updates, at most three methods per panel
ksweep             score against K; the best K of each task is printed beside the published K*
scaling            how far the candidates lie apart, and the winner from the data, against K
runtime            time per update, beside the released code's where that has been timed too
voronoi            routing before and after one real update (needs a pointmaze run with snapshots)

Every figure is a PNG with a CSV of its numbers. A run on collected data is marked 'local data'.
"""

import copy
import math
import pickle
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.patches import Polygon
from scipy import spatial

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py is
import drol  # noqa: E402
from tools import records  # noqa: E402

COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
NAMES = ["results", "learning_curves", "ksweep", "scaling", "runtime", "voronoi"]


@dataclass
class Args:
    run_dir: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables and figures
    bench: Path | None = None  # tools/bench.py's CSV; unset: bench.csv in the folder of the runs
    data_dir: Path | None = None  # datasets, for voronoi; unset: where its run found them
    only: tuple[Literal[*NAMES], ...] = ()  # which of them; unset: all
    voronoi: Path | None = None  # run folder for voronoi; unset: the first that will do


# ---------------------------------------------------------------------------------------- figures


def panels(titles, height=2.3):
    """A figure with an axis per title; up to nine fit the width of a page."""
    count = len(titles)
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3 if count <= 9 else 5)
    rows, width = math.ceil(count / columns), max(3.0 if columns == 5 else 2.75, 8.25 / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows + 1),
                                squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=8, loc="left")
    return figure, axes.flat[:count]


def numbered(names):
    """Names as titles, with numbers that a caption can refer to."""
    return [f"({i}) {name}" for i, name in enumerate(names, 1)]


def add_caption(figure, text, conditions=()):
    """Text below a figure: what it shows, the settings of all panels, and of each besides."""
    lines = [text]
    if len(conditions):
        split = [condition.split("; ") for condition in conditions]
        common = [part for part in split[0] if all(part in parts for parts in split)]
        lines.append(f"{', '.join(common)}; else default settings.")
        rest = pd.Series(["; ".join(p for p in parts if p not in common) for parts in split])
        for extra, places in rest.groupby(rest, sort=False).groups.items():
            if extra:
                lines.append(f"{', '.join(f'({i + 1})' for i in places)}: {extra}.")
    lines = [textwrap.fill(line, int(17.8 * figure.get_figwidth())) for line in lines]
    figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left", color="#333333")


def score_axis(axis, cell):
    """0 to 100, with room for the markers; wider only where normalised returns lie outside."""
    axis.set_ylim(min(0, cell.score.min()) - 3, max(100, cell.score.max()) + 3)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel(cell.metric.iloc[0], fontsize=8)


def learning_curves(curves):
    """curves: a row per evaluation of a run."""
    keys = ["task", "condition", "method"]
    table = records.over_seeds(curves, [*keys, "step"], "score").set_index(keys)
    table["of_seeds"] = curves.groupby(keys).path.nunique()
    table = table[table.seeds == table.of_seeds].reset_index()  # steps that every seed has
    ks = curves.groupby(records.SWEEP).k.transform("nunique")  # of a sweep, the paper's K alone
    curves = curves[(ks <= 3) | (curves.k == 16) | (curves.k == curves.published_k)]
    plots = []
    for (_, condition), cell in curves.groupby(["task", "condition"], sort=False):
        names = cell.method.unique()
        for start in range(0, len(names), 3):
            plots.append((condition, cell[cell.method.isin(names[start : start + 3])]))
    figure, axes = panels(numbered([cell.task.iloc[0] for _, cell in plots]))
    methods = list(curves.sort_values(["variant", "k"]).method.unique())
    handles = dict.fromkeys(methods)
    for axis, (condition, cell) in zip(axes, plots, strict=True):
        for size, method in zip((7, 5, 3), cell.method.unique(), strict=False):
            seeds = cell[cell.method == method]
            color = COLORS[methods.index(method) % 8]
            mean = table[(table[keys] == [cell.task.iloc[0], condition, method]).all(axis=1)]
            (handles[method],) = axis.plot(mean.step, mean["mean"], color=color, markersize=size,
                                           marker=MARKERS[methods.index(method) % 8])
            if seeds.path.nunique() >= 3:
                axis.fill_between(mean.step, mean.low, mean.high, color=color, alpha=0.15)
            else:
                each = seeds.pivot(index="step", columns="path", values="score")
                axis.plot(each.index, each, color=color, linewidth=0.6, alpha=0.6)
        axis.set_xlabel("updates", fontsize=8)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        score_axis(axis, cell)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=5, frameon=False)
    add_caption(figure, "Thick: mean over seeds. Thin: each of one or two seeds; shaded: lowest to "
                "highest of three or more.", [condition for condition, _ in plots])
    return table, figure


def draw_against_k(axis, cell, table, column, color):
    """The mean over seeds as a line and a dot per seed, over the logarithm of K."""
    axis.plot(table.k, table["mean"], color=color, linewidth=1.2, alpha=0.6)
    axis.plot(cell.k, cell[column], "o", color=color, markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks(table.k, table.k)
    axis.set_xlabel("K, number of candidates", fontsize=8)


def ksweep(runs):
    """runs: what records.sweeps returns."""
    groups = list(runs.groupby(records.SWEEP, sort=False))
    table = records.over_seeds(runs, [*records.SWEEP, "published_k", "k"], "score")
    figure, axes = panels(numbered([task for (task, _, _), _ in groups]))
    for axis, (keys, cell) in zip(axes, groups, strict=True):
        mine = table[(table[records.SWEEP] == list(keys)).all(axis=1)]
        best = ", ".join(map(str, mine.k[mine["mean"] == mine["mean"].max()]))
        print(f"  {keys[0]}: best K {best}, published K* {mine.published_k.iloc[0]}; {keys[1]}")
        draw_against_k(axis, cell, mine, "score", COLORS[0])
        score_axis(axis, cell)
    add_caption(figure, "Dots: one per seed. Line: their mean.", [keys[1] for keys, _ in groups])
    return table, figure


def scaling(runs):
    """runs: what records.load_candidates returns."""
    groups = list(runs.groupby(records.SWEEP, sort=False))
    figure, axes = panels(records.MEASURES.values(), height=2.8)
    tables = []
    for axis, name in zip(axes, records.MEASURES, strict=True):
        table = records.over_seeds(runs, [*records.SWEEP, "k"], name).assign(measure=name)
        tables.append(table)
        ends = []
        for i, (keys, cell) in enumerate(groups):
            mine = table[(table[records.SWEEP] == list(keys)).all(axis=1)]
            draw_against_k(axis, cell, mine, name, COLORS[i % 8])
            ends.append((mine["mean"].iloc[-1], mine.k.iloc[-1], i))
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_ylabel("per action dimension", fontsize=8)
        level = -math.inf
        for y, k, i in sorted(ends):
            level = max(y, level + 0.06 * axis.get_ylim()[1])  # so that labels do not overlap
            text = numbered([keys[0] for keys, _ in groups])[i]
            axis.text(1.2 * k, level, text, color=COLORS[i % 8], fontsize=8, va="center")
    add_caption(figure, "Means over the last tenth of training. Dots: one per seed. Line: their "
                "mean.", [keys[1] for keys, _ in groups])
    return pd.concat(tables), figure


def runtime(table):
    """table: what records.load_runtime returns."""
    figure, (axis,) = panels([""])
    wide = table.pivot(index="method", columns="code", values="update_ms")
    wide = wide.loc[table.method.unique(), table.code.unique()]
    colors = {code: COLORS[5] for code in wide}  # one that routes in another precision
    colors |= {"this code": COLORS[1], "released code": COLORS[6]}
    wide.plot.bar(ax=axis, rot=0, width=0.8, color=colors, legend=False)
    for bars, code in zip(axis.containers, wide, strict=True):
        rows = table[table.code == code].set_index("method").reindex(wide.index)
        labels = []
        for ms, times in zip(rows.update_ms, rows.times_as_fast, strict=True):
            label = f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.2f} ms"
            if times > 0:
                label += f"\n{times:.1f} times\nas fast"
            labels.append("" if math.isnan(ms) else label)
        axis.bar_label(bars, labels, fontsize=8, padding=2)
    axis.margins(y=0.15)
    axis.grid(visible=False, axis="x")
    axis.set_xlabel("")
    axis.set_ylabel("time per update, ms", fontsize=8)
    axis.legend(frameon=False, loc="upper left")
    text = "{device}; batch {batch_size}, hidden widths {hidden_dims}, {observation_dim} " \
           "observations, {action_dim} actions. Medians."
    add_caption(figure, text.format(**table.iloc[0]))
    return table, figure


def route_once(path, run, data):
    """One real update from a snapshot: a table of every candidate of a batch before and after it,
    and the batch's states and the critic from before it."""
    settings = drol.Args(env_id=run.env)
    vars(settings).update(run.config["settings"])
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        networks = drol.make_networks(*saved["dims"], torch.Generator())
        networks.load_state_dict(saved["networks"])
        optimizer = torch.optim.Adam(networks.parameters(), lr=settings.lr, fused=True)
        optimizer.load_state_dict(saved["optimizer"])
    except (KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise drol.UserError(f"{path} is not a snapshot of drol.py: {error!r:.200}") from error
    generator = drol.make_generator("cpu", 0)
    size = (settings.batch_size,)
    rows = torch.randint(len(data["rewards"]), size, generator=generator)
    batch = {key: tensor[rows] for key, tensor in data.items()}
    s, a = batch["observations"], batch["actions"]
    noise = drol.sample_noise(len(a), a.shape[1], settings, generator)
    critic = copy.deepcopy(networks["critic"])
    before = drol.sample_candidates(networks["actor"], s, noise["latents"])  # (B, K, 2)
    drol.update(networks, optimizer, batch, noise, settings)
    after = drol.sample_candidates(networks["actor"], s, noise["latents"])
    old, new, each = drol.route(before, a), drol.route(after, a), torch.arange(len(a))
    apart = (before[each, old] - before[each, new]).norm(dim=1)
    candidates = torch.cat([before, after, a[:, None].expand_as(before)], dim=2)  # (B, K, 6)
    index = pd.MultiIndex.from_product([range(len(a)), range(settings.k)], names=["state", "k"])
    columns = ["x", "y", "x_after", "y_after", "action_x", "action_y"]
    table = pd.DataFrame(candidates.flatten(0, 1).numpy(), index, columns).reset_index()
    per_state = {"row": rows, "old": old, "new": new, "apart": apart}
    per_state["spread"] = before.var(1).sum(1)
    per_state = pd.DataFrame({name: tensor.numpy() for name, tensor in per_state.items()})
    per_state["states_changed"] = (old != new).sum().item()  # of the batch
    per_state["updates"] = int(path.stem.removeprefix("snapshot"))
    return table.join(per_state, on="state"), s, critic


def load_voronoi(run, data_dir):
    """Three states for voronoi: a table of their candidates, and one of min Q over the actions."""
    data = records.load_dataset(run, data_dir)
    snapshots = sorted(run.path.glob("snapshot*.pt"), key=lambda path: int(path.stem[8:]))
    if len(snapshots) < 2 or run.k == 1 or data["actions"].shape[1] != 2:
        raise drol.UserError(f"{run.path} is not a DROL run with K > 1, two snapshots "
                             "(--snapshot-interval) and actions of two dimensions (pointmaze)")
    moments = [route_once(path, run, data) for path in snapshots]
    first, last = moments[0][0], moments[-1][0]
    chosen = [("candidates spread out", moments[0], first.spread.idxmax())]
    for moment in moments:
        if moment[0].apart.max() > 0 and len(chosen) == 1:  # two winners that can be told apart
            chosen.append(("another candidate takes over", moment, moment[0].apart.idxmax()))
    kept = last.spread[last.old == last.new]
    if len(kept):
        chosen.append(("the winner stays", moments[-1], kept.idxmax()))
    side = np.linspace(-1, 1, 81, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    candidates, values = [], []
    for panel, (table, s, critic), place in chosen:
        state = table.state[place]
        about = {"panel": panel, "task": run.task, "condition": run.condition}
        candidates.append(table[table.state == state].assign(**about))
        with torch.no_grad():
            q = critic(s[state].expand(len(grid), -1), torch.from_numpy(grid)).amin(0)
        values.append(pd.DataFrame(grid, columns=["x", "y"]).assign(q=q.numpy(), panel=panel))
    return pd.concat(candidates), pd.concat(values)


def cells(points):
    """The Voronoi cell of each point as a polygon; four points far off bound them all."""
    sites, place = np.unique(points, axis=0, return_inverse=True)
    far = [[-99, 0], [99, 0], [0, -99], [0, 99]]
    diagram = spatial.Voronoi(np.vstack([sites, far]))
    return [diagram.vertices[diagram.regions[diagram.point_region[i]]] for i in place.ravel()]


def voronoi(candidates, values):
    """What load_voronoi returns as a figure, and the first of it as its table."""
    moves = candidates[["x_after", "y_after"]].to_numpy() - candidates[["x", "y"]].to_numpy()
    room = 0.5 / max(np.linalg.norm(moves, axis=1).max(), 1e-9)
    power = 10 ** math.floor(math.log10(room))
    enlarged = max(step * power for step in (1, 2, 5) if step * power <= room)
    groups = list(candidates.groupby("panel", sort=False))
    titles = [f"{name}\nafter {cell.updates.iloc[0]:,} updates" for name, cell in groups]
    figure, axes = panels(titles, height=3.1)
    for axis, (name, cell) in zip(axes, groups, strict=True):
        q = values[values.panel == name].pivot(index="y", columns="x", values="q")
        top = 2 * q.max(axis=None) - q.min(axis=None)  # keeps the darkest grey light
        axis.contourf(q.columns, q.index, q, levels=12, cmap="Greys", vmax=top)
        before, after = cells(cell[["x", "y"]]), cells(cell[["x_after", "y_after"]])
        old, new = cell.iloc[cell.old.iloc[0]], cell.iloc[cell.new.iloc[0]]
        for polygon in before:
            axis.add_patch(Polygon(polygon, fill=False, edgecolor="black", linewidth=0.5))
        axis.add_patch(Polygon(before[old.k], color=COLORS[1], alpha=0.3, linewidth=0,
                               label="winner's cell before"))
        axis.add_patch(Polygon(after[new.k], fill=False, edgecolor=COLORS[3], linewidth=2,
                               linestyle="--", label="winner's cell after"))
        move_x, move_y = cell.x_after - cell.x, cell.y_after - cell.y
        arrows = axis.quiver(cell.x, cell.y, move_x, move_y, angles="xy", scale_units="xy",
                             scale=1 / enlarged, width=0.008, clip_on=False, zorder=3)
        arrows.set_in_layout(False)  # its extent is not known before it is drawn
        axis.plot(cell.x, cell.y, "o", color="black", markersize=3, clip_on=False,
                  label="candidate and its move")
        axis.plot([new.action_x, new.x], [new.action_y, new.y], "s--", color=COLORS[3], zorder=4,
                  markevery=[1], clip_on=False, markersize=8, label="winner after")
        axis.plot([old.action_x, old.x], [old.action_y, old.y], "o-", color=COLORS[1], zorder=5,
                  markevery=[1], clip_on=False, markersize=5, label="winner before")
        axis.plot(old.action_x, old.action_y, "*", color=COLORS[0], markersize=13, zorder=6,
                  clip_on=False, label="dataset action")
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axis.grid(visible=False)
        axis.set_xlabel("action, first component", fontsize=8)
    axes[0].set_ylabel("action, second component", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    text = f"{cell.task.iloc[0]}, K = {len(cell)}: one update on a batch, at {len(groups)} of " \
           f"its states. Arrows: moves, enlarged {enlarged:g} times. Grey: Q, darker is higher."
    add_caption(figure, text, candidates.condition.unique())
    return candidates, figure


# ------------------------------------------------------------------------------------------- main


def make(name, args, runs, curves, published):
    """A figure's table and the figure, or None where there is nothing to draw."""
    bench = args.bench or args.run_dir / "bench.csv"
    if name == "results":
        return records.results(runs), None
    if name == "runtime" and bench.exists():
        return runtime(records.load_runtime(bench))
    if name == "learning_curves" and len(curves):
        return learning_curves(curves)
    if name == "ksweep" and len(records.sweeps(runs)):
        return ksweep(records.sweeps(runs))
    if name == "scaling" and len(records.load_candidates(records.sweeps(runs))):
        return scaling(records.load_candidates(records.sweeps(runs)))
    if name == "voronoi" and args.voronoi:
        run, _ = records.load_run(args.voronoi, published)
        return voronoi(*load_voronoi(pd.Series(run), args.data_dir))
    if name == "voronoi":
        for _, run in runs[runs.env.str.startswith("pointmaze") & (runs.k > 1)].iterrows():
            if len(list(run.path.glob("snapshot*.pt"))) > 1:
                return voronoi(*load_voronoi(run, args.data_dir))
    return None


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    for path in (args.run_dir, args.bench, args.voronoi):
        if path and not path.exists():
            sys.exit(f"error: there is no {path}")
    published = records.read_published()
    runs, curves = records.load_runs(args.run_dir, published)
    failed = False
    for name in args.only or NAMES:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            for old in args.out.glob(f"{name}.*"):
                old.unlink()  # so that none of an earlier call is taken for a new one
            made = make(name, args, runs, curves, published)
            if made is None:
                print(f"{name}: not run")
                continue
            table, figure = made
            table.to_csv(args.out / f"{name}.csv", index=False)
            if figure:
                figure.savefig(args.out / f"{name}.png", dpi=200)
                plt.close(figure)
            else:
                (args.out / f"{name}.md").write_text(records.results_markdown(table))
            print(args.out / name)
        except (drol.UserError, OSError) as error:
            print(f"error: {name}: {' '.join(str(error).split())}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

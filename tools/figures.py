"""Tables and figures from the folders of runs: whatever is there, and 'not run' for what is not.

    python tools/figures.py --run-dir runs --out figures

results            per family and method: our score, its interquartile mean, the published one
learning_curves    score against updates, at most three methods per panel
ksweep             score against K; the best K of each task is printed beside the published K*
scaling            how far the candidates lie apart, and the winner from the data, against K
runtime            time per update, beside the released code's where that has been timed too

Every figure is a PNG with a CSV of its numbers. It cannot tell official data from collected data: a
run that was given --data-dir says so in its caption.
"""

import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import tyro

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py is
from tools import records  # noqa: E402

# The palette of every picture here and below results/, from Okabe and Ito.
COLORS = {
    "DROL": "#0072B2",
    "DROL*": "#56B4E9",
    "FQL": "#009E73",
    "released": "#8A8A8A",
    "published": "black",
    "Q": "#D55E00",
}
SHADES = {
    "DROL": ["#0072B2", "#56B4E9", "#003B5C", "#A6C8E0"],
    "FQL": ["#009E73", "#7FD1B9", "#00523B", "#B5D8A0"],
}
TASK_COLORS = ["#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
NAMES = ["results", "learning_curves", "ksweep", "scaling", "runtime"]
WIDTH = 8.3  # inches; at 200 dots per inch readable in the 830 pixels that a web page shows
plt.rcParams |= {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 200,
}


@dataclass
class Args:
    run_dir: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables and figures
    bench: Path | None = None  # tools/bench.py's CSV; unset: bench.csv in the folder of the runs
    only: tuple[Literal[*NAMES], ...] = ()  # which of them; unset: all


# ---------------------------------------------------------------------------------------- figures


def panels(titles, height=2.4):
    """A figure with an axis per title; up to nine fit the width of a page."""
    count = len(titles)
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3 if count <= 9 else 5)
    rows, width = math.ceil(count / columns), max(3.0 if columns == 5 else 2.75, WIDTH / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows + 1),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, loc="left", fontsize=8.5)
    return figure, axes.flat[:count]


def label_ends(axis, ends, gap=0.08):
    """Labels right of an axis, from a list of (y, text, color): each at its height, but at least
    gap times the axis' height from the next."""
    low, high = axis.get_ylim()
    ends = sorted(ends, key=lambda end: end[0])
    heights = np.array([(y - low) / (high - low) for y, _, _ in ends])
    for i in range(1, len(ends)):  # upwards, then back below the upper edge
        heights[i] = max(heights[i], heights[i - 1] + gap)
    for i in range(len(ends) - 1, -1, -1):
        heights[i] = min(heights[i], 1.02 - gap * (len(ends) - 1 - i))
    for height, (_, text, color) in zip(heights, ends, strict=True):
        axis.text(1.02, height, text, color=color, va="center", transform=axis.transAxes)


def numbered(names):
    """Names as titles, with numbers that a caption can refer to, where there are several."""
    return [f"({i}) {name}" for i, name in enumerate(names, 1)] if len(names) > 1 else list(names)


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
    lines = [textwrap.fill(line, int(16 * figure.get_figwidth())) for line in lines]
    figure.supxlabel("\n".join(lines), fontsize=8.5, x=0.01, ha="left", color="#333333")


def score_axis(axis, cell):
    """0 to 100, with room for the markers; wider only where normalised returns lie outside."""
    axis.set_ylim(min(0, cell.score.min()) - 3, max(100, cell.score.max()) + 3)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel(cell.metric.iloc[0])


def styles(methods):
    """{method: its color and marker}: DROL in blue, K = 16 first, and FQL in green."""
    found, methods = {}, sorted(methods, key=lambda method: method != "DROL K = 16")
    for name, shades in SHADES.items():
        mine = [method for method in methods if method.startswith(name)]
        found |= {
            method: {"color": shades[i % 4], "marker": MARKERS[i % 8]}
            for i, method in enumerate(mine)
        }
    return found


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
    style, handles = styles(methods), dict.fromkeys(methods)
    for axis, (condition, cell) in zip(axes, plots, strict=True):
        for method in cell.method.unique():
            seeds, color = cell[cell.method == method], style[method]["color"]
            mean = table[(table[keys] == [cell.task.iloc[0], condition, method]).all(axis=1)]
            (handles[method],) = axis.plot(mean.step, mean["mean"], markersize=5, **style[method])
            if seeds.path.nunique() >= 3:
                axis.fill_between(mean.step, mean.low, mean.high, color=color, alpha=0.15)
            else:
                each = seeds.pivot(index="step", columns="path", values="score")
                axis.plot(each.index, each, color=color, linewidth=0.6, alpha=0.6)
        axis.set_xlabel("updates")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        score_axis(axis, cell)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=5, frameon=False)
    add_caption(
        figure,
        "Thick: mean over seeds. Thin: each of one or two seeds; shaded: lowest to "
        "highest of three or more.",
        [condition for condition, _ in plots],
    )
    return table, figure


def draw_against_k(axis, cell, table, column, color):
    """The mean over seeds as a line and a dot per seed, over the logarithm of K."""
    axis.plot(table.k, table["mean"], color=color, linewidth=1.5, alpha=0.6)
    axis.plot(cell.k, cell[column], "o", color=color, markersize=5)
    axis.set_xscale("log", base=2)
    axis.set_xticks(table.k, table.k)
    axis.set_xlabel("K, number of candidates")


def ksweep(runs):
    """runs: what records.sweeps returns."""
    groups = list(runs.groupby(records.SWEEP, sort=False))
    table = records.over_seeds(runs, [*records.SWEEP, "published_k", "k"], "score")
    figure, axes = panels(numbered([task for (task, _, _), _ in groups]))
    for axis, (keys, cell) in zip(axes, groups, strict=True):
        mine = table[(table[records.SWEEP] == list(keys)).all(axis=1)]
        best = ", ".join(map(str, mine.k[mine["mean"] == mine["mean"].max()]))
        print(f"  {keys[0]}: best K {best}, published K* {mine.published_k.iloc[0]}; {keys[1]}")
        draw_against_k(axis, cell, mine, "score", COLORS["DROL"])
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
            mine, color = (
                table[(table[records.SWEEP] == list(keys)).all(axis=1)],
                TASK_COLORS[i % 5],
            )
            draw_against_k(axis, cell, mine, name, color)
            ends.append((mine["mean"].iloc[-1], numbered([x[0] for x, _ in groups])[i], color))
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_ylabel("per action dimension")
        if len(groups) > 1:
            label_ends(axis, ends)
    tasks = f"{groups[0][0][0]}. " if len(groups) == 1 else ""
    add_caption(
        figure,
        f"{tasks}Means over the last tenth of training. Dots: one per seed. Line: their mean.",
        [keys[1] for keys, _ in groups],
    )
    return pd.concat(tables), figure


def runtime(table, hardware):
    """What records.load_runtime returns. The bars' labels are computed from their heights."""
    figure, (axis,) = panels([""], height=2.6)
    colors = dict(zip(table, TASK_COLORS * 2, strict=False)) | {"released code": COLORS["released"]}
    table.plot.bar(ax=axis, rot=0, width=0.8, color=colors, legend=table.shape[1] > 2)
    for bars, way in zip(axis.containers, table, strict=True):
        labels = [f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.2f} ms" for ms in table[way]]
        axis.bar_label(bars, labels, padding=2, fontsize=8 if table.shape[1] > 2 else 9.5)
    if [*table] == ["this code", "released code"]:
        for method, bar in zip(table.index, axis.containers[0], strict=True):
            bar.set_color(COLORS["FQL" if method == "FQL" else "DROL"])
        for place, (ours, released) in enumerate(table.to_numpy()):
            text = f"{released / ours:.1f} times\nas fast"
            axis.annotate(
                text,
                (place - 0.2, ours),
                (0, 15),
                textcoords="offset points",
                ha="center",
                va="bottom",
            )
        for x, way in ((-0.2, "this code"), (0.2, "released\ncode")):
            axis.text(
                x,
                -0.02,
                way,
                color=[*colors.values()][x > 0],
                ha="center",
                va="top",
                transform=axis.get_xaxis_transform(),
                fontsize=8.5,
            )
        axis.tick_params(axis="x", pad=24, length=0)
    axis.set_ylim(top=1.12 * table.max(axis=None))
    axis.grid(visible=False)
    axis.set_xlabel("")
    axis.set_ylabel("time per update, ms")
    text = (
        "{device}; batch {batch_size}, hidden widths {hidden_dims}, {observation_dim} "
        "observations, {action_dim} actions. Medians over rounds."
    )
    add_caption(figure, text.format(**hardware))
    return table.reset_index(), figure


# ------------------------------------------------------------------------------------------- main


def make(name, args, runs, curves):
    """A figure's table and the figure, or None where there is nothing to draw."""
    bench = args.bench or args.run_dir / "bench.csv"
    if name == "results":
        return records.results(runs), None
    if name == "runtime" and bench.exists():
        return runtime(*records.load_runtime(bench))
    if name == "learning_curves" and len(curves):
        return learning_curves(curves)
    if name == "ksweep" and len(records.sweeps(runs)):
        return ksweep(records.sweeps(runs))
    if name == "scaling" and len(records.load_candidates(records.sweeps(runs))):
        return scaling(records.load_candidates(records.sweeps(runs)))
    return None


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    for path in (args.run_dir, args.bench):
        if path and not path.exists():
            sys.exit(f"error: there is no {path}")
    runs, curves = records.load_runs(args.run_dir, records.read_published())
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or NAMES:
        for old in args.out.glob(f"{name}.*"):
            old.unlink()  # so that none of an earlier call is taken for a new one
        made = make(name, args, runs, curves)
        if made is None:
            print(f"{name}: not run")
            continue
        table, figure = made
        table.to_csv(args.out / f"{name}.csv", index=False)
        if figure:
            figure.savefig(args.out / f"{name}.png")
            plt.close(figure)
        else:
            (args.out / f"{name}.md").write_text(records.results_markdown(table))
        print(args.out / name)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")

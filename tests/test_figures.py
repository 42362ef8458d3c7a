"""Tests of tools/figures.py and tools/records.py: the numbers, and what the figures plot."""

import json
import math
import runpy
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import drol
import fql
from tests.helpers import ROOT
from tools import figures, records

PUBLISHED = records.read_published()
CUBE, SCENE = "cube-double-play-singletask-task{}-v0", "scene-play-singletask-task1-v0"


def made_up_run(folder, env, scores, k=16, seed=0, method=None, **given):
    """A run with given scores after 100, 200, ... updates. k: None for FQL. Its candidates lie
    K / 10 apart and its cloning loss is 1 / K in the last tenth of train.csv, and more before."""
    program = drol if k else fql
    name, _, task = env.removesuffix("-v0").partition("-singletask-task")
    env_id = name.rpartition("-")[0] if task else env
    args = program.Args(env_id=env_id, task=int(task) if task else None, seed=seed)
    program.resolve(args)
    settings = vars(args) | {"steps": 100 * len(scores)} | ({"k": k} if k else {}) | given
    method = method or f"{program.ALGORITHM}-k{k}-{len(list(folder.glob('*/*')))}"
    run = folder / env / method / f"seed{seed}"
    run.mkdir(parents=True)
    config = {"algorithm": program.ALGORITHM, "env_name": env, "versions": {}} | settings
    (run / "config.json").write_text(json.dumps(config))
    steps = [100 * (i + 1) for i in range(len(scores))]
    pd.DataFrame({"step": steps, "score": scores}).to_csv(run / "eval.csv", index=False)
    log = pd.DataFrame({"step": range(10, 210, 10)})
    early = (log.step <= 180).astype(float)  # the last tenth is 190 and 200
    if k:
        log["candidate_spread"] = (k / 10) ** 2 * (k - 1) / (2 * k) + early
        log["bc_loss"] = 1 / k + early
    log.to_csv(run / "train.csv", index=False)
    return run


def call(*args):
    figures.main([str(arg) for arg in args])


def load(folder):
    return records.load_runs(folder, PUBLISHED)


def caption(figure):
    return " ".join(figure._supxlabel.get_text().split())


def thick_lines(axis):
    """The lines with markers: the means."""
    return [line for line in axis.lines if line.get_marker() not in ("None", None, "")]


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]


# ------------------------------------------------------------------------------------------ table


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """Runs of which every number of the table can be worked out by hand."""
    runs = tmp_path_factory.mktemp("runs")
    for k, offset in ((1, 0), (16, 40), (64, 20)):
        for seed in range(4):
            score = offset + seed**3  # 0, 1, 8, 27
            made_up_run(runs, CUBE.format(1), [0, score, score + 3, score + 6], k, seed)
    for seed in range(3):  # a second task of three of the seeds
        made_up_run(runs, CUBE.format(2), [0, 90, 90, 90], 16, seed)
    made_up_run(runs, CUBE.format(1), [99], 16, seed=9, steps=400)  # unfinished
    made_up_run(runs, SCENE, [1, 2, 3, 4, 5, 6], steps=200)
    made_up_run(runs, CUBE.format(1), [70, 70, 70], eval_episodes=5)
    for task in (1, 2):
        made_up_run(runs, CUBE.format(task), [70 + task] * 3, data_dir="data")
    made_up_run(runs, "antmaze-umaze-v2", [10, 20, 60])
    made_up_run(runs, "pen-human-v1", [10, 20, 130])
    return runs


@pytest.fixture(scope="module")
def table(runs_dir):
    return records.results(load(runs_dir)[0])


def cell(table, family, method, condition):
    (row,) = table[
        (table.family == family) & (table.method == method) & (table.condition == condition)
    ].to_dict("records")
    return row


def test_mean_deviation_and_iqm_by_hand(table):
    row = cell(table, "cube-double", "DROL(16)", "400 updates")
    # the mean of the last three scores: 43, 44, 51 and 70 in task 1; seeds 0 to 2 have task 2 too
    means = [(43 + 90) / 2, (44 + 90) / 2, (51 + 90) / 2]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["std"] == pytest.approx(np.std(means, ddof=1))
    assert row["iqm"] == pytest.approx((44 + 51 + 90 + 90) / 4)  # of 43, 44, 51, 90, 90, 90
    assert (row["seeds"], row["tasks"], row["of_tasks"], row["published"]) == (3, 2, 5, 20)
    star = cell(table, "cube-double", "DROL*", "400 updates")  # K* is 64: 23, 24, 31, 50
    assert (star["mean"], star["iqm"]) == pytest.approx((32, (24 + 31) / 2))


def test_bootstrap_is_stratified_by_task(table):
    """The interval of resampling the three seeds of each task by themselves, made here in full."""
    row = cell(table, "cube-double", "DROL(16)", "400 updates")
    draws = np.array(np.meshgrid(*[[43, 44, 51]] * 3)).reshape(3, -1).T  # all 27 of task 1
    values = [stats.trim_mean([*draw, 90, 90, 90], 0.25) for draw in draws]
    assert row["iqm_low"] == pytest.approx(np.quantile(values, 0.025), abs=0.3)
    assert row["iqm_high"] == pytest.approx(np.quantile(values, 0.975), abs=0.3)
    assert math.isnan(cell(table, "scene", "DROL(16)", "600 updates")["iqm_low"])  # one seed


def test_what_a_row_is_of(table):
    assert cell(table, "cube-double", "FQL", "not run")["seeds"] == 0
    assert cell(table, "cube-double", "DROL(16)", "300 updates; eval_episodes 5")["mean"] == 70
    local = cell(table, "cube-double", "DROL(16)", "300 updates; data_dir data")
    assert (local["mean"], local["tasks"], local["which"]) == (71.5, 2, "task 1, task 2")
    # what a run was trained for, not what it was last asked for
    assert cell(table, "scene", "DROL(16)", "600 updates")["mean"] == 5
    # D4RL's score is the last evaluation's
    assert cell(table, "d4rl-antmaze", "DROL(16)", "300 updates")["mean"] == 60
    assert cell(table, "d4rl-adroit", "DROL(16)", "300 updates")["mean"] == 130
    assert table.unfinished.sum() == 1
    assert len(table[table.condition == "not run"]) == table["mean"].isna().sum()
    assert set(table.family) >= {"antmaze-large", "puzzle-4x4", "d4rl-adroit"}


def test_markdown_says_what_has_not_been_run(table):
    text = records.results_markdown(table)
    assert text.count("| not run | not run |") == (table.condition == "not run").sum()
    assert "| d4rl-antmaze | DROL(16) | 60.0 | 60.0 | 78 | 1 of 6 (antmaze-umaze-v2) | 1 |" in text
    assert "| cube-double | DROL* | 32.0 +- 12.5 | 27.5 [" in text
    assert "400 updates (1 unfinished left out)" in text


def test_settings_that_differ_are_named(tmp_path):
    made_up_run(
        tmp_path,
        CUBE.format(1),
        [1],
        lr=1e-3,
        hidden_dims=[128, 128],
        bc_coef=30.0,
        eval_envs=5,
        exp_name="mine",
    )
    made_up_run(tmp_path, CUBE.format(1), [1], k=None, alpha=7.0)
    made_up_run(tmp_path, "pointmaze-medium-navigate-singletask-task1-v0", [1], tau=0.1)
    runs, _ = load(tmp_path)
    assert list(runs.method) == ["DROL K = 16, bc_coef 30", "FQL, alpha 7", "DROL K = 16"]
    assert list(runs.settings) == ["lr 0.001; hidden_dims 128 128; exp_name mine", "", "tau 0.1"]
    assert list(runs.suites) == [[], [], ["DROL(16)"]]


@pytest.mark.parametrize("copy", ["drol-k16/seed0.bak", "drol-k16-old/seed0"])
def test_two_runs_of_one_seed_are_refused(tmp_path, copy):
    """A copy beside its original, also of an earlier time, neither counts as a seed nor is averaged
    into it. Another experiment's name makes another method."""
    run = made_up_run(tmp_path, SCENE, [1, 2, 3], method="drol-k16")
    made_up_run(tmp_path, SCENE, [1, 2, 3], method="mine-k16", exp_name="mine")
    assert len(load(tmp_path)[0]) == 2
    other = tmp_path / SCENE / copy
    shutil.copytree(run, other)
    config = json.loads((run / "config.json").read_text()) | {"steps": 200, "device": "cuda"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as exit:
        call("--run-dir", tmp_path, "--out", tmp_path / "out")
    message = str(exit.value)
    assert message.startswith("error: ") and "\n" not in message
    assert f"{run}" in message and f"{other}" in message and "one task, method and seed" in message
    assert not (tmp_path / "out").exists()


def test_released_runs_are_read(tmp_path):
    """Their settings stand under "agent", and they are no second run of the seed."""
    made_up_run(tmp_path, SCENE, [1, 2, 3])
    run = made_up_run(tmp_path, SCENE, [4, 5, 6], method="released")
    agent = {"num_candidates": 16, "bc_coef": 3.0, "lr": 3e-4}
    config = {"algorithm": "drol", "code": "released", "env_name": SCENE, "seed": 0, "agent": agent}
    (run / "config.json").write_text(json.dumps(config))
    runs, _ = load(tmp_path)
    assert list(runs.code) == ["ours", "released"] and list(runs.score) == [2, 5]
    assert list(runs.condition) == ["300 updates", "300 updates; code released"]


def test_committed_records_are_read(capsys):
    runs, curves = load(ROOT / "results" / "local" / "records")
    assert "left out" not in capsys.readouterr().out
    cube = runs[(runs.task == "cube-single, task 2") & (runs.k == 16)]
    assert list(cube.score) == [88, 84] and set(cube.suites.str[0]) == {"DROL(16)"}
    assert len(curves[curves.path == cube.path.iloc[0]]) == 8


# ---------------------------------------------------------------------------------------- figures


def test_learning_curves_of_one_task_by_hand(tmp_path):
    """Two seeds of DROL as thin lines and their mean, three of FQL as a mean and a shade."""
    for seed in range(2):
        made_up_run(tmp_path, SCENE, [0, 40 + 20 * seed, 100], 16, seed, lr=1e-3)
    for seed in range(3):
        made_up_run(tmp_path, SCENE, [0, 10 * seed, 30], None, seed, lr=1e-3)
    table, figure = figures.learning_curves(load(tmp_path)[1])
    (axis,) = figure.axes
    drol_mean, fql_mean = thick_lines(axis)
    assert list(drol_mean.get_xdata()) == [100, 200, 300]
    assert list(drol_mean.get_ydata()) == [0, 50, 100] and list(fql_mean.get_ydata()) == [0, 10, 30]
    thin = [list(line.get_ydata()) for line in axis.lines if line not in (drol_mean, fql_mean)]
    assert thin == [[0, 40, 100], [0, 60, 100]]
    (shade,) = axis.collections  # FQL's, from its lowest to its highest seed
    assert {y for x, y in shade.get_paths()[0].vertices if x == 200} == {0, 20}
    assert axis.get_ylabel() == "success rate, %" and titles(figure) == ["scene, task 1"]
    assert "300 updates, lr 0.001" in caption(figure)
    legend = {
        text.get_text(): line.get_color()
        for text, line in zip(
            figure.legends[0].get_texts(), figure.legends[0].get_lines(), strict=True
        )
    }
    assert legend == {"DROL K = 16": figures.COLORS["DROL"], "FQL": figures.COLORS["FQL"]}
    assert list(table["mean"]) == [0, 50, 100, 0, 10, 30]


def test_at_most_three_methods_per_panel(tmp_path):
    """Of a sweep over more than three K only 16 and K* are drawn; others are spread over panels."""
    for k in (1, 2, 4, 16, 64):  # K* is 64
        made_up_run(tmp_path, CUBE.format(1), [k, k, k], k)
    for weight in (1.0, 2.0, 5.0, 6.0):
        made_up_run(tmp_path, SCENE, [weight] * 3, bc_coef=weight)
    made_up_run(tmp_path, CUBE.format(1), [5, 5, 5], None)
    _, figure = figures.learning_curves(load(tmp_path)[1])
    heights = [
        [line.get_ydata()[0] for line in thick_lines(axis)]
        for axis in figure.axes
        if axis.get_visible()
    ]
    assert heights == [[16, 64, 5], [1, 2, 5], [6]]
    colors = [line.get_color() for axis in figure.axes[1:3] for line in thick_lines(axis)]
    assert len(set(colors)) == 4


def test_normalised_returns_have_room(tmp_path):
    made_up_run(tmp_path, "pen-human-v1", [-20, 80, 140])
    _, figure = figures.learning_curves(load(tmp_path)[1])
    (axis,) = figure.axes
    assert axis.get_ylabel() == "normalised return" and titles(figure) == ["pen-human-v1"]
    low, high = axis.get_ylim()
    assert -30 < low < -20 and 140 < high < 150


def test_long_names_and_settings_leave_room(tmp_path):
    """Ten panels with the longest titles: no title is cut, and what differs is in the caption."""
    for size in ("medium", "large"):
        for task in range(1, 6):
            env = f"humanoidmaze-{size}-navigate-singletask-task{task}-v0"
            made_up_run(
                tmp_path,
                env,
                [1, 2],
                hidden_dims=[128, 128, 128],
                lr=0.001,
                tau=0.02,
                eval_episodes=25,
                batch_size=256 + (size == "large"),
            )
    _, figure = figures.learning_curves(load(tmp_path)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: axes sizes collapsed to zero
        figure.draw_without_rendering()
    boxes = [axis._left_title.get_window_extent() for axis in figure.axes]
    assert max(box.x1 for box in boxes) < figure.bbox.width
    rows = zip(boxes, boxes[1:], strict=False)
    assert all(a.x1 < b.x0 for a, b in rows if abs(a.y0 - b.y0) < 1)
    assert "hidden_dims 128 128 128" in caption(figure)
    assert "(1), (2), (3), (4), (5): batch_size 257." in caption(figure)


def test_seeds_without_a_common_evaluation(tmp_path):
    """One seed was cut off after an evaluation that the other does not have: no mean yet."""
    made_up_run(tmp_path, SCENE, [1, 2], 1, seed=0)
    cut_off = made_up_run(tmp_path, SCENE, [1, 2], 1, seed=1)
    (cut_off / "eval.csv").write_text("step,score\n50,5\n")
    made_up_run(tmp_path, "cube-single-play-singletask-task1-v0", [3, 4], 1)
    table, figure = figures.learning_curves(load(tmp_path)[1])
    assert list(table.task) == ["cube-single, task 1"] * 2 and list(table["mean"]) == [3, 4]
    assert [len(line.get_xdata()) for line in thick_lines(figure.axes[1])] == [0]


def test_ksweep_plots_a_dot_per_seed(runs_dir, capsys):
    runs, _ = load(runs_dir)
    table, figure = figures.ksweep(records.sweeps(runs))
    assert "cube-double, task 1: best K 16, published K* 64; 400 updates" in capsys.readouterr().out
    (axis,) = figure.axes
    mean, dots = axis.lines
    assert list(mean.get_xdata()) == [1, 16, 64] and list(mean.get_ydata()) == [12, 52, 32]
    points = sorted(zip(dots.get_xdata(), dots.get_ydata(), strict=True))
    assert points == [
        (k, offset + seed**3 + 3) for k, offset in ((1, 0), (16, 40), (64, 20)) for seed in range(4)
    ]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "16", "64"]
    assert list(table["mean"]) == [12, 52, 32] and list(table.seeds) == [4, 4, 4]


def test_ksweep_of_an_unpublished_task(tmp_path):
    for k in (1, 2):
        made_up_run(tmp_path, "pointmaze-medium-navigate-singletask-task1-v0", [k] * 3, k)
    table, _ = figures.ksweep(records.sweeps(load(tmp_path)[0]))
    assert list(table["mean"]) == [1, 2] and table.published_k.isna().all()


def test_scaling_plots_the_last_tenth(runs_dir):
    """The distance is the root mean square over pairs, which follows from the variance."""
    runs, _ = load(runs_dir)
    table, figure = figures.scaling(records.load_candidates(records.sweeps(runs)))
    apart, loss = [axis for axis in figure.axes if axis.get_visible()]
    assert list(apart.lines[0].get_xdata()) == [1, 16, 64]
    assert list(apart.lines[0].get_ydata()) == pytest.approx([0, 1.6, 6.4])
    assert list(loss.lines[0].get_ydata()) == pytest.approx([1, 1 / 16, 1 / 64])
    assert list(apart.lines[1].get_ydata()) == pytest.approx(np.repeat([0, 1.6, 6.4], 4))
    assert "cube-double, task 1" in caption(figure) and not apart.texts
    points = np.random.default_rng(0).normal(size=(5, 3))
    pairs = [np.mean((a - b) ** 2) for i, a in enumerate(points) for b in points[:i]]
    assert points.var(0).mean() * 2 * 5 / 4 == pytest.approx(np.mean(pairs))
    assert list(table["std"]) == [0] * 6  # four equal seeds each


def test_scaling_labels_do_not_overlap(tmp_path):
    """Three tasks with the same numbers: the labels stand one above the other."""
    for family in ("cube-single", "scene", "puzzle-3x3"):
        for k in (1, 2):
            made_up_run(tmp_path, f"{family}-play-singletask-task1-v0", [1, 2, 3], k)
    runs, _ = load(tmp_path)
    _, figure = figures.scaling(records.load_candidates(records.sweeps(runs)))
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = sorted((text.get_window_extent() for text in axis.texts), key=lambda box: box.y0)
        assert len(boxes) == 3 and all(a.y1 <= b.y0 for a, b in zip(boxes, boxes[1:], strict=False))


BENCH = "method,{}update_ms,released_ms,device,batch_size,hidden_dims,observation_dim,action_dim\n"
REST = ",cpu,256,512 512,69,21\n"


def test_runtime_is_beside_the_released_code(tmp_path):
    """Medians over rounds. What the labels say follows from the bars' heights."""
    rows = [
        "DROL K = 1,20,30",
        "DROL K = 1,10,30",
        "DROL K = 1,30,30",
        "FQL,50,100",
        "FQL,50,200",
        "FQL,50,150",
    ]
    (tmp_path / "bench.csv").write_text(BENCH.format("") + "".join(row + REST for row in rows))
    table, figure = figures.runtime(*records.load_runtime(tmp_path / "bench.csv"))
    (axis,) = figure.axes
    ours, released = axis.containers
    assert [bar.get_height() for bar in ours] == [20, 50]
    assert [bar.get_height() for bar in released] == [30, 150]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["DROL K = 1", "FQL"]
    labels = [text.get_text() for text in axis.texts]
    assert labels[:6] == [
        "20 ms",
        "50 ms",
        "30 ms",
        "150 ms",
        "1.5 times\nas fast",
        "3.0 times\nas fast",
    ]
    assert "cpu" in caption(figure) and "69 observations" in caption(figure)
    assert list(table["this code"]) == [20, 50] and list(table["released code"]) == [30, 150]


def test_runtime_tells_modes_and_precisions_apart(tmp_path):
    rows = [
        f"DROL K = {k},{mode},{precision},{k * ms},"
        for k in (1, 4)
        for mode, precision, ms in (
            ("eager", "highest", 4),
            ("compile", "highest", 2),
            ("eager", "high", 3),
            ("compile", "high", 1),
        )
    ]
    text = BENCH.format("mode,matmul_precision,").replace("released_ms", "floor_ms")
    (tmp_path / "bench.csv").write_text(text + "".join(row + REST for row in rows))
    _, figure = figures.runtime(*records.load_runtime(tmp_path / "bench.csv"))
    heights = {
        bars.get_label(): [bar.get_height() for bar in bars] for bars in figure.axes[0].containers
    }
    assert heights == {
        "eager, highest": [4, 16],
        "compile, highest": [2, 8],
        "eager, high": [3, 12],
        "compile, high": [1, 4],
    }


def test_reproduction_by_hand(tmp_path):
    """Only the seeds with the most updates count, by the mean of their last three evaluations."""
    plot = runpy.run_path(str(ROOT / "results" / "reproduction" / "plot.py"))
    env = "cube-single-play-singletask-task2-v0"
    for seed, scores in enumerate(([0, 90, 96, 99], [0, 60, 63, 66], [100])):
        made_up_run(tmp_path, env, scores, None, seed, method="fql-alpha300")
    run = made_up_run(tmp_path, env, [50, 60, 70, 80], None, method="fql-released-alpha300")
    config = {"algorithm": "fql", "code": "released", "env_name": env, "seed": 0, "agent": {}}
    (run / "config.json").write_text(json.dumps(config))
    table = plot["make_table"](tmp_path)
    assert len(table) == 13 and set(table.episodes) == {50}
    share = stats.binomtest(45, 50).proportion_ci(method="wilson")
    row = table[(table.code == "ours") & (table.score == 90)]
    assert np.allclose(row[["low", "high"]], [[100 * share.low, 100 * share.high]])
    ours, released = plot["summarise"](table).to_dict("records")
    assert (ours["seeds"], ours["updates"], ours["score"]) == (2, 400, 79)
    assert (ours["low"], ours["high"], ours["published"]) == (63, 95, 97)
    assert (released["code"], released["seeds"], released["score"]) == ("released", 1, 70)


def test_reproduction_is_of_its_records():
    """table.csv and summary.csv are what the script makes of the records."""
    folder = ROOT / "results" / "reproduction"
    plot = runpy.run_path(str(folder / "plot.py"))
    table = plot["make_table"](folder / "records")
    for name, made in (("table", table), ("summary", plot["summarise"](table))):
        written = pd.read_csv(folder / f"{name}.csv")
        pd.testing.assert_frame_equal(made.round(1), written, check_dtype=False)


# ------------------------------------------------------------------------------------ command line


def test_what_is_written(runs_dir, tmp_path, capsys):
    (tmp_path / "runtime.png").write_text("of an earlier call")
    call("--run-dir", runs_dir, "--out", tmp_path)
    assert "runtime: not run" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "results.csv",
        "results.md",
        "learning_curves.csv",
        "learning_curves.png",
        "ksweep.csv",
        "ksweep.png",
        "scaling.csv",
        "scaling.png",
    }
    assert list(pd.read_csv(tmp_path / "ksweep.csv")["mean"]) == [12, 52, 32]
    width, height = (
        int.from_bytes((tmp_path / "ksweep.png").read_bytes()[i : i + 4], "big") for i in (16, 20)
    )
    assert width == 1660 and height > 500


def test_nothing_has_been_run(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    call("--run-dir", tmp_path / "runs", "--out", tmp_path / "out")
    out = capsys.readouterr().out
    assert all(f"{name}: not run" in out for name in figures.NAMES if name != "results")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.csv", "results.md"}
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(table) == 12 * 3 and set(table.condition) == {"not run"}


def test_broken_folders_are_left_out(tmp_path, capsys):
    made_up_run(tmp_path, CUBE.format(1), [1, 2, 3], method="whole")
    (made_up_run(tmp_path, CUBE.format(1), [1], method="empty") / "config.json").write_text("{}")
    (made_up_run(tmp_path, CUBE.format(1), [1], method="cut") / "config.json").write_text("{")
    unknown = made_up_run(tmp_path, CUBE.format(1), [1], method="unknown") / "config.json"
    unknown.write_text(unknown.read_text().replace("cube-double-play", "cube-none-play"))
    runs, _ = load(tmp_path)
    out = capsys.readouterr().out
    assert len(runs) == 1 and out.count("left out") == 3
    assert all(name in out for name in ("empty", "cut", "unknown"))


@pytest.mark.parametrize("flag", ["--run-dir", "--bench"])
def test_a_missing_path_is_refused(flag, tmp_path):
    with pytest.raises(SystemExit) as exit:
        call("--run-dir", tmp_path, "--out", tmp_path / "out", flag, tmp_path / "none")
    assert str(exit.value) == f"error: there is no {tmp_path / 'none'}"


def test_a_bench_file_without_its_columns_is_refused(runs_dir, tmp_path):
    (tmp_path / "bench.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as exit:
        call(
            "--run-dir",
            runs_dir,
            "--out",
            tmp_path / "out",
            "--bench",
            tmp_path / "bench.csv",
            "--only",
            "runtime",
        )
    message = str(exit.value)
    assert message.startswith("error: ") and "bench.csv" in message and "\n" not in message

"""Tests of tools/figures.py and tools/records.py: the numbers, and what the figures plot."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Polygon
from scipy import stats

import drol
import fql
from tools import figures, records

RESULTS = Path(__file__).resolve().parents[1] / "results"
PUBLISHED = records.read_published()


def made_up_run(folder, env, scores, k=16, seed=0, method=None, source="unknown", **typed):
    """A run with given scores after 100, 200, ... updates. k: None for FQL. Its candidates lie
    K / 10 apart and its cloning loss is 1 / K in the last tenth of train.csv, and 1 more before."""
    program, algorithm, suite = (drol, "drol", "DROL(16)") if k else (fql, "fql", "FQL")
    family, _, rest = env.partition("-singletask-task")
    task = int(rest[0]) if rest else None
    dataset = f"{family}-v0" if task else env
    published = PUBLISHED.get((env, suite), {"bc_coef": 1.0, "alpha": 10.0})
    settings = vars(program.Args(env_id=env))
    settings |= {name: published[name] for name in settings if name in published}
    settings |= {"task": task, "seed": seed, "steps": 100 * len(scores)} | typed
    if k:
        settings["k"] = k
    method = method or f"{algorithm}-k{k}-{len(list(folder.glob('*/*')))}"
    run = folder / env / method / f"seed{seed}"
    run.mkdir(parents=True)
    config = {
        "algorithm": algorithm, "settings": settings,
        "env": {"name": env, "dataset": dataset, "task": task,
                "preset": family.removesuffix("-play").removesuffix("-noisy")},
        "origin": {name: "command line" if name in typed else "default" for name in settings},
        "data": {"source": source, "simulator": "mujoco 3.4.0", "fingerprint": "0", "path": "x"},
    }
    (run / "config.json").write_text(json.dumps(config, default=str))
    steps = [100 * (i + 1) for i in range(len(scores))]
    pd.DataFrame({"step": steps, "score": scores}).to_csv(run / "eval.csv", index=False)
    log = pd.DataFrame({"step": range(10, 210, 10)})
    early = (log.step <= 180).astype(float)  # the last tenth is 190 and 200
    log["pairwise_distance"] = (k or 0) / 10 + early
    log["bc_loss"] = 1 / (k or 1) + early
    log.to_csv(run / "train.csv", index=False)
    return run


def call(*args):
    figures.main([str(arg) for arg in args])


def load(folder):
    return records.load_runs(folder, PUBLISHED)


def caption(figure):
    return " ".join(figure._supxlabel.get_text().split())


def thick_lines(axis):
    """{label of the legend: (x, y)} of the lines with markers: the means."""
    return [line for line in axis.lines if line.get_marker() not in ("None", None, "")]


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]


def assert_nothing_clipped(axis):
    low, high = axis.get_ylim()
    for line in axis.lines:
        values = np.asarray(line.get_ydata(), float)
        assert low < np.nanmin(values) and np.nanmax(values) < high


# ------------------------------------------------------------------------------------------ table


CUBE = "cube-double-play-singletask-task{}-v0"


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
    made_up_run(runs, "scene-play-singletask-task1-v0", [1, 2, 3, 4, 5, 6], steps=200)
    made_up_run(runs, "cube-double-noisy-singletask-task1-v0", [7, 7, 7])
    made_up_run(runs, CUBE.format(1), [70, 70, 70], eval_episodes=5)
    for task in (1, 2):
        source = "collected locally: 3 episodes, seed 4, ogbench 1.2.2, mujoco 3.4.0"
        made_up_run(runs, CUBE.format(task), [70 + task] * 3, source=source)
    made_up_run(runs, "antmaze-umaze-v2", [10, 20, 60])
    made_up_run(runs, "pen-human-v1", [10, 20, 130])
    return runs


@pytest.fixture(scope="module")
def table(runs_dir):
    return records.results(load(runs_dir)[0])


def cell(table, family, method, condition):
    (row,) = table[(table.family == family) & (table.method == method)
                   & (table.condition == condition)].to_dict("records")
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
    local = cell(table, "cube-double", "DROL(16)", "300 updates; local data (3 episodes, seed 4)")
    assert (local["mean"], local["tasks"], local["which"]) == (71.5, 2, "task 1, task 2")
    assert math.isnan(cell(table, "cube-double-noisy", "DROL(16)", "300 updates")["published"])
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
    assert "| cube-double-noisy | DROL(16) | 7.0 | 7.0 | not published |" in text


def test_the_names_of_folders_say_nothing(tmp_path):
    """Records of both namings are read, and a flag typed at its default value changes nothing."""
    for seed, method in enumerate(("drol-k16-9a5d528f", "drol-k16", "drol-k16-lr0.001")):
        typed = {"lr": 3e-4, "bc_coef": 3.0} if seed == 1 else {}
        made_up_run(tmp_path, CUBE.format(1), [1, 2, 3], 16, seed, method, **typed)
    runs, _ = load(tmp_path)
    assert list(runs.condition) == ["300 updates"] * 3 and list(runs.method) == ["DROL K = 16"] * 3
    assert all(suites == ["DROL(16)"] for suites in runs.suites)


def test_settings_that_differ_are_named(tmp_path):
    made_up_run(tmp_path, CUBE.format(1), [1], lr=1e-3, hidden_dims=[128, 128], bc_coef=30.0,
                eval_envs=5, data_dir="data")
    made_up_run(tmp_path, CUBE.format(1), [1], k=None, alpha=7.0)
    runs, _ = load(tmp_path)
    assert list(runs.method) == ["DROL K = 16, bc_coef 30", "FQL, alpha 7"]
    assert list(runs.condition) == ["100 updates; lr 0.001; hidden_dims 128 128", "100 updates"]
    assert list(runs.suites) == [[], []]


def test_committed_records_are_read(capsys):
    runs, curves = load(RESULTS / "local" / "records")
    assert "left out" not in capsys.readouterr().out
    cube = runs[(runs.task == "cube-single, task 2") & (runs.k == 16)]
    assert list(cube.score) == [88, 84]  # as recorded in results/local
    assert len(curves[curves.path == cube.path.iloc[0]]) == 8


# ---------------------------------------------------------------------------------------- figures


def test_learning_curves_of_one_task_by_hand(tmp_path):
    """Two seeds of DROL as thin lines and their mean, three of FQL as a mean and a shade."""
    scene = "scene-play-singletask-task1-v0"
    for seed in range(2):
        made_up_run(tmp_path, scene, [0, 40 + 20 * seed, 100], 16, seed, lr=1e-3)
    for seed in range(3):
        made_up_run(tmp_path, scene, [0, 10 * seed, 30], None, seed, lr=1e-3)
    table, figure = figures.learning_curves(load(tmp_path)[1])
    (axis,) = figure.axes
    drol_mean, fql_mean = thick_lines(axis)
    assert list(drol_mean.get_xdata()) == [100, 200, 300]
    assert list(drol_mean.get_ydata()) == [0, 50, 100] and list(fql_mean.get_ydata()) == [0, 10, 30]
    thin = [list(line.get_ydata()) for line in axis.lines if line not in (drol_mean, fql_mean)]
    assert thin == [[0, 40, 100], [0, 60, 100]]
    (shade,) = axis.collections  # FQL's, from its lowest to its highest seed
    at_200 = shade.get_paths()[0].vertices
    assert {y for x, y in at_200 if x == 200} == {0, 20}
    assert axis.get_ylabel() == "success rate, %" and titles(figure) == ["(1) scene, task 1"]
    assert_nothing_clipped(axis)
    assert list(axis.get_yticks()) == [0, 20, 40, 60, 80, 100] and axis.get_ylim()[1] < 110
    assert "300 updates, lr 0.001" in caption(figure)
    legend = {text.get_text(): line.get_color() for text, line in
              zip(figure.legends[0].get_texts(), figure.legends[0].get_lines(), strict=True)}
    assert legend == {"DROL K = 16": drol_mean.get_color(), "FQL": fql_mean.get_color()}
    assert list(table["mean"]) == [0, 50, 100, 0, 10, 30]


def test_at_most_three_methods_per_panel(tmp_path):
    """Of a sweep over more than three K only 16 and K* are drawn; others are spread over panels."""
    for k in (1, 2, 4, 16, 64):  # K* is 64
        made_up_run(tmp_path, CUBE.format(1), [k, k, k], k)
    for weight in (1.0, 2.0, 5.0, 6.0):
        made_up_run(tmp_path, "scene-play-singletask-task1-v0", [weight] * 3, bc_coef=weight)
    made_up_run(tmp_path, CUBE.format(1), [5, 5, 5], None)
    _, figure = figures.learning_curves(load(tmp_path)[1])
    heights = [[line.get_ydata()[0] for line in thick_lines(axis)] for axis in figure.axes
               if axis.get_visible()]
    assert heights == [[16, 64, 5], [1, 2, 5], [6]]


def test_normalised_returns_have_room(tmp_path):
    made_up_run(tmp_path, "pen-human-v1", [-20, 80, 140])
    _, figure = figures.learning_curves(load(tmp_path)[1])
    (axis,) = figure.axes
    assert axis.get_ylabel() == "normalised return" and titles(figure) == ["(1) pen-human-v1"]
    assert_nothing_clipped(axis)


def test_settings_stand_in_the_caption(tmp_path):
    """Long settings that differ leave room for the curves, and no title holds them."""
    for name in ("cube-single", "scene"):
        env = f"{name}-play-singletask-task1-v0"
        for k in (16, 1, 4):
            made_up_run(tmp_path, env, [1, 2, 3], k, source=f"collected locally: {name}",
                        hidden_dims=[128, 128, 128], eval_interval=5000, eval_episodes=25,
                        lr=0.001, tau=0.02, batch_size=100 + len(name))
    runs, curves = load(tmp_path)
    for _, figure in (figures.learning_curves(curves), figures.ksweep(records.sweeps(runs))):
        assert titles(figure) == ["(1) cube-single, task 1", "(2) scene, task 1"]
        assert "hidden_dims 128 128 128" in caption(figure)
        assert "(1): batch_size 111; local data (cube-single)." in caption(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as: axes sizes collapsed to zero
            figure.draw_without_rendering()
        for axis in figure.axes:
            assert axis.get_position().height > 0.4 and axis.get_position().width > 0.3


def test_long_titles_are_not_cut(tmp_path):
    """The longest names of the suites, in nine panels and in ten, stay inside their columns."""
    for size in ("medium", "large"):
        for task in range(1, 6):
            env = f"humanoidmaze-{size}-navigate-singletask-task{task}-v0"
            made_up_run(tmp_path, env, [task, task])
    _, curves = load(tmp_path)
    for count in (9, 10):
        tasks = curves.task.unique()[-count:]
        _, figure = figures.learning_curves(curves[curves.task.isin(tasks)])
        figure.draw_without_rendering()
        boxes = [axis._left_title.get_window_extent() for axis in figure.axes[:count]]
        assert max(box.x1 for box in boxes) < figure.bbox.width
        rows = zip(boxes, boxes[1:], strict=False)
        assert all(a.x1 < b.x0 for a, b in rows if abs(a.y0 - b.y0) < 1)


def test_seeds_without_a_common_evaluation(tmp_path):
    """One seed was cut off after an evaluation that the other does not have: no mean yet."""
    scene = "scene-play-singletask-task1-v0"
    made_up_run(tmp_path, scene, [1, 2], 1, seed=0)
    cut_off = made_up_run(tmp_path, scene, [1, 2], 1, seed=1)
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
    assert points == [(k, offset + seed**3 + 3) for k, offset in ((1, 0), (16, 40), (64, 20))
                      for seed in range(4)]
    assert not axis.collections and not axis.patches  # no bars
    assert axis.get_ylabel() == "success rate, %" and list(axis.get_yticks())[::5] == [0, 100]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "16", "64"]
    assert list(table["mean"]) == [12, 52, 32] and list(table.seeds) == [4, 4, 4]


def test_ksweep_of_an_unpublished_task(tmp_path):
    for k in (1, 2):
        made_up_run(tmp_path, "pointmaze-medium-navigate-singletask-task1-v0", [k] * 3, k)
    table, _ = figures.ksweep(records.sweeps(load(tmp_path)[0]))
    assert list(table["mean"]) == [1, 2] and table.published_k.isna().all()


def test_scaling_plots_the_last_tenth(runs_dir):
    runs, _ = load(runs_dir)
    table, figure = figures.scaling(records.load_candidates(records.sweeps(runs)))
    apart, loss = [axis for axis in figure.axes if axis.get_visible()]
    assert list(apart.lines[0].get_xdata()) == [1, 16, 64]
    assert list(apart.lines[0].get_ydata()) == pytest.approx([0.1, 1.6, 6.4])
    assert list(loss.lines[0].get_ydata()) == pytest.approx([1, 1 / 16, 1 / 64])
    assert list(apart.lines[1].get_ydata()) == pytest.approx(np.repeat([0.1, 1.6, 6.4], 4))
    assert [text.get_text() for text in apart.texts] == ["(1) cube-double, task 1"]  # at its line
    assert apart.texts[0].get_color() == apart.lines[0].get_color() and not apart.child_axes
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


BENCH = "method,update_ms,action_ms,device,batch_size,hidden_dims,observation_dim,action_dim\n"


def test_runtime_is_beside_the_released_code(tmp_path):
    """Medians over the rounds, the ratio within each, at the K that both have; no acting."""
    (tmp_path / "bench.csv").write_text(
        BENCH + "DROL K = 1,2.5,0.1,cpu,256,512 512,69,21\n"
        "DROL K = 4,3,0.1,cpu,256,512 512,69,21\n")
    (tmp_path / "released_code.csv").write_text(
        "round,method,update_ms,released_ms\n1,DROL K = 1,20,30\n2,DROL K = 1,10,30\n"
        "3,DROL K = 1,30,30\n1,FQL,50,100\n2,FQL,50,200\n3,FQL,50,150\n")
    table, figure = figures.runtime(records.load_runtime(tmp_path / "bench.csv"))
    (axis,) = figure.axes
    ours, released = axis.containers
    assert [bar.get_height() for bar in ours] == [20, 50]
    assert [bar.get_height() for bar in released] == [30, 150]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["DROL K = 1", "FQL"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["this code",
                                                                          "released code"]
    labels = [text.get_text() for text in axis.texts]
    assert "1.5 times" in labels[0] and "3.0 times" in labels[1]
    assert labels[2:] == ["30 ms", "150 ms"]
    assert "cpu" in caption(figure) and "69 observations" in caption(figure)
    assert list(table.update_ms) == [20, 50, 30, 150]


def test_runtime_without_the_released_code(tmp_path):
    (tmp_path / "bench.csv").write_text(BENCH + "DROL K = 1,2.5,0.1,cpu,256,512 512,69,21\n"
                                        "FQL,3.5,0.1,cpu,256,512 512,69,21\n")
    _, figure = figures.runtime(records.load_runtime(tmp_path / "bench.csv"))
    (bars,) = figure.axes[0].containers
    assert [bar.get_height() for bar in bars] == [2.5, 3.5]


def test_runtime_tells_routing_in_bfloat16_apart(tmp_path):
    header = BENCH.replace("method,", "method,routing_dtype,")
    rest = ",0.1,cpu,256,512 512,69,21\n"
    (tmp_path / "bench.csv").write_text(
        f"{header}DROL K = 1,float32,9{rest}DROL K = 4,float32,8{rest}DROL K = 4,bfloat16,4{rest}"
        f"FQL,,7{rest}")
    _, figure = figures.runtime(records.load_runtime(tmp_path / "bench.csv"))
    plain, bfloat16 = figure.axes[0].containers
    assert [bar.get_height() for bar in plain] == [9, 8, 7]
    assert np.nanmax([bar.get_height() for bar in bfloat16]) == 4
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels == ["9.00 ms", "8.00 ms", "7.00 ms", "", "4.00 ms", ""]


# ------------------------------------------------------------------------------------ command line


def test_what_is_written(runs_dir, tmp_path, capsys):
    (tmp_path / "voronoi.png").write_text("of an earlier call")
    call("--run-dir", runs_dir, "--out", tmp_path)
    out = capsys.readouterr().out
    assert "voronoi: not run" in out and "runtime: not run" in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.csv", "results.md", "learning_curves.csv", "learning_curves.png",
                     "ksweep.csv", "ksweep.png", "scaling.csv", "scaling.png"}
    assert list(pd.read_csv(tmp_path / "ksweep.csv")["mean"]) == [12, 52, 32]
    width, height = (int.from_bytes((tmp_path / "ksweep.png").read_bytes()[i : i + 4], "big")
                     for i in (16, 20))
    assert width > 1000 and height > 500


def test_only_some_are_made(tmp_path):
    made_up_run(tmp_path / "runs", CUBE.format(1), [1, 2, 3])
    call("--run-dir", tmp_path / "runs", "--out", tmp_path / "out", "--only", "results")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.csv", "results.md"}


def test_nothing_has_been_run(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    call("--run-dir", tmp_path / "runs", "--out", tmp_path / "out")
    out = capsys.readouterr().out
    assert all(f"{name}: not run" in out for name in figures.NAMES if name != "results")
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(table) == 12 * 3 and set(table.condition) == {"not run"}


def test_broken_folders_are_left_out(tmp_path, capsys):
    made_up_run(tmp_path, CUBE.format(1), [1, 2, 3], method="whole")
    (made_up_run(tmp_path, CUBE.format(1), [1], method="empty") / "config.json").write_text("{}")
    (made_up_run(tmp_path, CUBE.format(1), [1], method="cut") / "config.json").write_text("{")
    runs, _ = load(tmp_path)
    out = capsys.readouterr().out
    assert len(runs) == 1 and out.count("left out") == 2 and "empty" in out and "cut" in out


@pytest.mark.parametrize("flag", ["--run-dir", "--bench", "--voronoi"])
def test_a_missing_path_is_refused(flag, tmp_path):
    with pytest.raises(SystemExit) as exit:
        call("--run-dir", tmp_path, "--out", tmp_path / "out", flag, tmp_path / "none")
    assert str(exit.value) == f"error: there is no {tmp_path / 'none'}"


def test_a_bench_file_without_its_columns_is_refused(runs_dir, tmp_path, capsys):
    (tmp_path / "bench.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as exit:
        call("--run-dir", runs_dir, "--out", tmp_path / "out", "--bench", tmp_path / "bench.csv",
             "--only", "runtime", "ksweep")
    error = capsys.readouterr().err
    assert exit.value.code == 1 and error.startswith("error: runtime: ") and error.count("\n") == 1
    assert (tmp_path / "out" / "ksweep.png").exists()  # the others are made all the same


# ---------------------------------------------------------------------------------------- voronoi


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """A run of drol.py on a random pointmaze dataset, with snapshots at 5, 10, 15 and 20."""
    folder, rng = tmp_path_factory.mktemp("maze"), np.random.default_rng(0)
    (folder / "data").mkdir()
    for name in ("pointmaze-medium-navigate-v0", "pointmaze-medium-navigate-v0-val"):
        places = rng.uniform(0, 20, (303, 2)).astype(np.float32)
        ends = np.zeros(303, np.float32)
        ends[100::101] = 1
        actions = rng.uniform(-1, 1, (303, 2)).astype(np.float32)
        np.savez(folder / "data" / f"{name}.npz", observations=places, actions=actions,
                 terminals=ends, qpos=places, qvel=np.zeros_like(places))
    drol.main(["--env-id", "pointmaze-medium", "--data-dir", str(folder / "data"), "--run-dir",
               str(folder / "runs"), "--steps", "20", "--hidden-dims", "16", "16", "--batch-size",
               "64", "--log-interval", "10", "--eval-envs", "1", "--eval-episodes", "1", "--k", "8",
               "--snapshot-interval", "5", "--lr", "1e-3", "--device", "cpu"])
    return folder


@pytest.fixture(scope="module")
def maze_run(maze):
    runs, _ = load(maze / "runs")
    return runs.iloc[0]


@pytest.fixture(scope="module")
def drawn(maze_run):
    candidates, values = figures.load_voronoi(maze_run, None)
    return candidates, values, figures.voronoi(candidates, values)[1]


def test_voronoi_is_a_real_update(maze_run, drawn):
    """The same update by hand, from the snapshot as it lies on the disk."""
    candidates, values, _ = drawn
    data = records.load_dataset(maze_run, None)
    assert 2 <= candidates.panel.nunique() <= 3
    assert set(candidates.updates[candidates.panel == "candidates spread out"]) == {5}
    assert set(candidates.updates[candidates.panel == "the winner stays"]) == {20}
    for panel, rows in candidates.groupby("panel"):
        assert len(rows) == 8
        saved = torch.load(maze_run.path / f"snapshot{rows.updates.iloc[0]}.pt", weights_only=True)
        networks = drol.make_networks(*saved["dims"], torch.Generator())
        networks.load_state_dict(saved["networks"])
        optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3, fused=True)
        optimizer.load_state_dict(saved["optimizer"])
        settings = drol.Args(env_id="")
        vars(settings).update(maze_run.config["settings"])
        generator = drol.make_generator("cpu", 0)
        index = torch.randint(300, (64,), generator=generator)
        batch = {key: tensor[index] for key, tensor in data.items()}
        noise = drol.sample_noise(64, 2, settings, generator)
        state = rows.state.iloc[0]
        assert rows.row.iloc[0] == index[state]
        assert np.allclose(rows[["action_x", "action_y"]], batch["actions"][state])
        q = networks["critic"](batch["observations"][state][None],
                               torch.tensor([[-1.0, 1.0]])).amin().item()
        corner = values[(values.panel == panel) & (values.x == -1) & (values.y == 1)]
        assert corner.q.item() == pytest.approx(q, abs=1e-5)
        for columns, winner in ((["x", "y"], "old"), (["x_after", "y_after"], "new")):
            places = drol.sample_candidates(networks["actor"], batch["observations"],
                                            noise["latents"])[state]
            assert np.allclose(rows[columns], places, atol=1e-6)
            distance = (places - batch["actions"][state]).norm(dim=1)
            assert (rows[winner] == distance.argmin().item()).all()
            drol.update(networks, optimizer, batch, noise, settings)
        changed = rows.old.iloc[0] != rows.new.iloc[0]
        assert not (panel == "the winner stays" and changed)
        assert not (panel == "another candidate takes over" and not changed)


def test_voronoi_plots_what_its_table_says(drawn):
    candidates, _, figure = drawn
    axes = [axis for axis in figure.axes if axis.get_visible()]
    scales = set()
    for axis, (panel, rows) in zip(axes, candidates.groupby("panel", sort=False), strict=True):
        assert axis.get_title(loc="left").startswith(panel)
        lines = {line.get_label(): line.get_xydata() for line in axis.lines}
        assert np.allclose(lines["candidate and its move"], rows[["x", "y"]])
        action = rows[["action_x", "action_y"]].to_numpy()[0]
        assert np.allclose(lines["dataset action"], [action])
        places = rows[["x", "y"]].to_numpy()
        assert np.allclose(lines["winner before"], [action, places[rows.old.iloc[0]]])
        assert np.allclose(lines["winner after"], [action, places[rows.new.iloc[0]]])
        (arrows,) = [artist for artist in axis.collections if hasattr(artist, "scale_units")]
        assert np.allclose(arrows.get_offsets(), places)
        assert np.allclose(arrows.U, rows.x_after - rows.x)
        assert np.allclose(arrows.V, rows.y_after - rows.y)
        scales.add(arrows.scale)
        assert not axis.texts  # no labels on the contours
    assert len(scales) == 1
    assert f"enlarged {1 / scales.pop():g} times" in caption(figure)


def test_voronoi_marks_the_cells_of_the_winners(drawn):
    """Actions drawn at random lie in the winner's cell exactly if the winner is nearest to them."""
    candidates, _, figure = drawn
    probes = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    for axis, (_, rows) in zip(figure.axes, candidates.groupby("panel", sort=False), strict=False):
        cells = {patch.get_label(): patch for patch in axis.patches if isinstance(patch, Polygon)}
        for label, columns, winner in (("winner's cell before", ["x", "y"], "old"),
                                       ("winner's cell after", ["x_after", "y_after"], "new")):
            places = rows[columns].to_numpy()
            nearest = np.linalg.norm(probes[:, None] - places, axis=2).argmin(1)
            inside = cells[label].get_path().contains_points(probes)
            same = (places == places[rows[winner].iloc[0]]).all(axis=1)  # clipped to one place
            assert (inside == same[nearest]).all()


def test_voronoi_layout(drawn):
    _, _, figure = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()


def test_voronoi_of_the_first_run_that_will_do(maze, tmp_path):
    call("--run-dir", maze / "runs", "--out", tmp_path, "--only", "voronoi")
    assert {path.name for path in tmp_path.iterdir()} == {"voronoi.csv", "voronoi.png"}


@pytest.mark.parametrize("case", ["no data", "other data", "one snapshot", "broken snapshot"])
def test_voronoi_refuses(maze, maze_run, tmp_path, capsys, case):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "eval.csv", "snapshot10.pt", "snapshot20.pt"):
        (run / name).write_bytes((maze_run.path / name).read_bytes())
    data = maze / "data"
    if case == "no data":
        data = tmp_path
    if case == "other data":
        data = tmp_path / "other"
        data.mkdir()
        for name in ("pointmaze-medium-navigate-v0", "pointmaze-medium-navigate-v0-val"):
            arrays = dict(np.load(maze / "data" / f"{name}.npz"))
            np.savez(data / f"{name}.npz", **arrays | {"actions": -arrays["actions"]})
    if case == "one snapshot":
        (run / "snapshot20.pt").unlink()
    if case == "broken snapshot":
        (run / "snapshot20.pt").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as exit:
        call("--run-dir", tmp_path, "--out", tmp_path / "out", "--only", "voronoi", "--voronoi",
             run, "--data-dir", data)
    word = {"no data": "is not there; give --data-dir", "other data": "is not the data of",
            "one snapshot": "--snapshot-interval", "broken snapshot": "is not a snapshot"}[case]
    error = capsys.readouterr().err
    assert exit.value.code == 1 and error.startswith("error: voronoi: ") and word in error
    assert error.count("\n") == 1

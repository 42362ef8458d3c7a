"""Tests of tools/figures.py: the numbers of its tables, and what its figures plot."""

import json
import math
import shutil
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import drol
import fql
from tests import fake
from tests.helpers import ROOT, every_program, read
from tools import figures

PUBLISHED = pd.read_csv(ROOT / "testdata" / "published_settings.csv").set_index("full_name")
CUBE, SCENE = "cube-double-play-singletask-task{}-v0", "scene-play-singletask-task1-v0"
OWN = "my_tasks:MyPoint-v0"
VERSIONS = {"torch": "2.13.0", "mujoco": "3.4.0", "ogbench": "1.2.2"}


def made_up_run(folder, env, scores, k=16, seed=0, method=None, versions=VERSIONS, **given):
    """A run with these scores after 100, 200, ... updates, at the published settings but for what
    is given. k: None for FQL. In the last tenth of train.csv candidates lie K / 10 apart and the
    cloning loss is 1 / K; before, both are more."""
    program = drol if k else fql
    settings = {x.name: x.default for x in fields(program.Args)} | {"env_id": env, "seed": seed}
    if env in PUBLISHED.index:
        row = PUBLISHED.loc[[env]].query(f"suite == '{'DROL(16)' if k else 'FQL'}'").iloc[0]
        settings |= row[["discount", "q_agg", "bc_coef" if k else "alpha"]]
    settings |= {"steps": 100 * len(scores), "hidden_dims": [512] * 4} | ({"k": k} if k else {})
    run = folder / env / (method or f"{len(list(folder.glob('*/*')))}") / f"seed{seed}"
    run.mkdir(parents=True)
    config = {"algorithm": program.ALGORITHM, "versions": versions}
    (run / "config.json").write_text(json.dumps(config | settings | given))
    if scores:
        curve = pd.DataFrame({"score": scores, "step": range(100, 100 * len(scores) + 1, 100)})
        curve.to_csv(run / "eval.csv", index=False)
    if k:
        early = np.repeat([1.0, 0.0], [18, 2])
        log = pd.DataFrame({"bc_loss": 1 / k + early})
        log["candidate_spread"] = (k / 10) ** 2 * (k - 1) / (2 * k) + early
        log.to_csv(run / "train.csv", index=False)
    return run


def make(run_dir, out):
    """What is made of the runs: results.csv."""
    figures.main(["--run-dir", str(run_dir), "--out", str(out)])
    return pd.read_csv(out / "results.csv")


def only(table, **values):
    """The one row that has these values."""
    for column, value in values.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return row


@pytest.mark.parametrize("name, expected", [
    ("cube-single-play-singletask-task2-v0", 40), ("antmaze-large-play-v2", 60),
    ("tests.fake:pen-human-v1", 40), ("pen-human-v1", 60),  # one's own, whatever it is called
])  # fmt: skip
def test_the_final_score_is_the_papers(name, expected):
    """D4RL: the last evaluation; else the mean of the last three."""
    rows = [{"score": score} for score in (90.0, 20.0, 40.0, 60.0)]
    assert figures.final_score(rows, name) == pytest.approx(expected)
    assert figures.final_score(rows[:1], name) == 90


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """Runs of which every number of the table can be worked out by hand."""
    runs = tmp_path_factory.mktemp("runs")
    for k, offset in ((1, 0), (16, 40), (64, 20)):  # K* is 64
        for seed, more in enumerate((offset, offset + 1, offset + 8, offset + 27)):
            made_up_run(runs, CUBE.format(1), [0, more, more + 3, more + 6], k, seed)
    for seed in range(3):  # a second task of three of the seeds
        made_up_run(runs, CUBE.format(2), [0, 90, 90, 90], 16, seed)
    made_up_run(runs, CUBE.format(3), [99], 16, seed=9, steps=400)  # unfinished
    made_up_run(runs, CUBE.format(1), [70, 70, 70], eval_episodes=5)
    made_up_run(runs, CUBE.format(1), [9, 9, 9], 64, algorithm="mine")  # no DROL*
    made_up_run(runs, "antmaze-umaze-v2", [10, 20, 60])
    made_up_run(runs, "pen-human-v1", [10, 20, 130])
    return runs


@pytest.fixture(scope="module")
def table(runs_dir, tmp_path_factory):
    return make(runs_dir, tmp_path_factory.mktemp("out"))


def test_mean_deviation_and_iqm_by_hand(table):
    row = only(table, method="DROL(16)", condition="steps 400")
    # the mean of the last three scores: 43, 44, 51 and 70 in task 1; seeds 0 to 2 have task 2 too
    means = [(43 + 90) / 2, (44 + 90) / 2, (51 + 90) / 2]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["std"] == pytest.approx(np.std(means, ddof=1))
    assert row["iqm"] == pytest.approx((44 + 51 + 90 + 90) / 4)  # of 43, 44, 51, 90, 90, 90
    assert (row["seeds"], row["tasks"], row["of_tasks"], row["published"]) == (3, 2, 5, 20)
    assert row["unfinished"] == 1 == table.unfinished.sum()
    star = only(table, method="DROL*", family="cube-double")  # K* is 64: 23, 24, 31, 50
    assert (star["mean"], star["iqm"], star["published"]) == pytest.approx((32, 27.5, 26))
    assert math.isnan(only(table, method="DROL(1)")["published"])


def test_bootstrap_is_stratified_by_task(table):
    """The interval of resampling the three seeds of each task by themselves, made here in full."""
    row = only(table, method="DROL(16)", condition="steps 400")
    draws = np.array(np.meshgrid(*[[43, 44, 51]] * 3)).reshape(3, -1).T  # all 27 of task 1
    values = [stats.trim_mean([*draw, 90, 90, 90], 0.25) for draw in draws]
    interval = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    assert [row["iqm_low"], row["iqm_high"]] == pytest.approx(interval)
    assert math.isnan(only(table, method="DROL(16)", family="d4rl-adroit")["iqm_low"])


def test_a_run_has_the_papers_score_and_a_row_of_its_settings(table):
    """D4RL's is the last evaluation. Other settings are another row."""
    antmaze = only(table, family="d4rl-antmaze", method="DROL(16)")
    assert (antmaze["mean"], antmaze["published"], antmaze["of_tasks"]) == (60, 78, 6)
    assert only(table, family="d4rl-adroit", method="DROL(16)")["mean"] == 130
    assert only(table, condition="steps 300; eval_episodes 5")["mean"] == 70


def test_not_run_is_said_of_what_was_looked_for(table):
    missing = table[table.condition == "not run"]
    assert set(missing.family) == {"cube-double", "d4rl-adroit", "d4rl-antmaze"} == {*table.family}
    assert missing.seeds.sum() == 0 and missing["mean"].isna().all()
    assert only(missing, family="cube-double")["published"] == 29  # FQL


@every_program
def test_an_own_task_has_a_family_and_an_axis_of_its_own(program, corridor_run, tmp_path):
    """Its run as the program leaves it. Its scores may be returns. Of benchmarks, 0 to 100 is
    shown."""
    run = corridor_run(program, "runs", "--eval-interval", 5)
    row = only(make(tmp_path / "runs", tmp_path / "out"))
    scores = [float(row["score"]) for row in read(run / "eval.csv")]
    assert row["mean"] == pytest.approx(np.mean(scores[-3:]))
    assert (row["seeds"], row["tasks"], row["of_tasks"], row["family"]) == (1, 1, 1, fake.NAME[:19])
    assert math.isnan(row["published"])
    made_up_run(tmp_path / "more", OWN, [-900, -132, -131, -130], None, alpha=3.0)
    made_up_run(tmp_path / "more", "pen-human-v1", [-20, 80, 140])
    grid = figures.learning_curves(figures.load_runs(tmp_path / "more")[1])
    assert grid.axes_dict[OWN].get_ylim()[1] < 0
    assert grid.axes_dict["pen-human-v1"].get_ylim()[1] > 140


def test_a_data_folder_is_no_setting_and_other_versions_are_named(tmp_path):
    """Eight seeds on eight machines, one of them with another mujoco and another dataset."""
    for seed in range(8):
        other = {"versions": VERSIONS | {"mujoco": "3.3.7"}} if seed == 5 else {}
        dataset = f"{1000 + (seed == 6)} transitions"
        places = {"data_dir": f"/scratch{seed}/data", "eval_envs": seed + 1, "device": "cuda"}
        made_up_run(tmp_path, SCENE, [seed] * 3, seed=seed, **places, **other, dataset=dataset)
    row = only(make(tmp_path, tmp_path / "out"), method="DROL(16)")
    assert (row["seeds"], row["mean"], row["condition"]) == (8, 3.5, "steps 300")
    text = (tmp_path / "out" / "results.md").read_text()
    versions, dataset = text.splitlines()[-3::2]
    assert "3.3.7" in versions and "1001 transitions" in dataset
    assert "seed 5" in versions and "seed 6" in dataset


def test_settings_that_differ_are_named(tmp_path):
    """Also one that other runs lack. What changes no score is not."""
    given = {"lr": 1e-3, "hidden_dims": [128, 128], "bc_coef": 30.0, "exp_name": "mine"}
    made_up_run(tmp_path, SCENE, [1], **given, log_interval=500)
    made_up_run(tmp_path, SCENE, [1], None, alpha=7, my_weight=0.5)
    made_up_run(tmp_path, SCENE, [1], 64, bc_coef=30.0)  # K* with another weight
    table = make(tmp_path, tmp_path / "out")
    drol_row, fql_row, star = (table[table.method == x] for x in ("DROL(16)", "FQL", "DROL*"))
    words = {"lr 0.001", "hidden_dims 128 128", "bc_coef 30", "exp_name mine", "steps 100"}
    assert set(drol_row.condition.item().split("; ")) == words
    assert set(fql_row.condition.item().split("; ")) == {"alpha 7", "my_weight 0.5", "steps 100"}
    assert math.isnan(drol_row.published.item()) and math.isnan(fql_row.published.item())
    assert star.condition.item() == "not run"
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert list(runs.lr) == [0.001, 0.0003, 0.0003] and list(runs.score) == [1, 1, 1]


@pytest.mark.parametrize("copy", ["drol-k16/seed0.bak", "drol-k16-old/seed0"])
def test_two_runs_of_one_seed_are_refused(tmp_path, copy):
    """A copy beside its original, also of an earlier time. Another --exp-name is another method."""
    run = made_up_run(tmp_path, SCENE, [1, 2, 3], method="drol-k16")
    made_up_run(tmp_path, SCENE, [1, 2, 3], method="mine-k16", exp_name="mine")
    assert len(figures.load_runs(tmp_path)[0]) == 2
    shutil.copytree(run, tmp_path / SCENE / copy)
    config = json.loads((run / "config.json").read_text()) | {"steps": 200, "device": "cuda"}
    (tmp_path / SCENE / copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"^error: [^\n]*drol-k16[^\n]*drol-k16[^\n]*$"):
        make(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    made_up_run(tmp_path, SCENE, [1, 2, 3], method="whole")
    made_up_run(tmp_path, SCENE, [], method="begun", seed=1, steps=300)
    (made_up_run(tmp_path, SCENE, [1], method="empty") / "config.json").write_text("{}")
    (made_up_run(tmp_path, SCENE, [1], method="cut") / "config.json").write_text("{")
    (made_up_run(tmp_path, SCENE, [1], method="gap") / "eval.csv").write_text("step,score\n100,\n")
    runs, _ = figures.load_runs(tmp_path)
    assert list(runs.finished) == [True, False] and list(runs.seed) == [0, 1]
    out = capsys.readouterr().out
    assert all(name in out for name in ("empty", "cut", "gap")) and out.count("\n") == 3


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: no run in [^\n]*none[^\n]*$"):
        make(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def drawn(axis):
    """The x and y of every line that is drawn."""
    return [(list(x.get_xdata()), list(x.get_ydata())) for x in axis.lines if len(x.get_xdata())]


def test_learning_curves_by_hand(tmp_path):
    """Mean, lowest and highest of two seeds of DROL; an unfinished run of FQL by itself."""
    for seed in range(2):
        made_up_run(tmp_path, SCENE, [0, 40 + 20 * seed, 100], 16, seed, lr=1e-3)
        made_up_run(tmp_path, SCENE, [0, 10 * seed, 30], None, seed, lr=1e-3)
    made_up_run(tmp_path, SCENE, [0, 70], None, seed=2, lr=1e-3, steps=300)
    grid = figures.learning_curves(figures.load_runs(tmp_path)[1])
    (axis,) = grid.axes.flat
    x = [0.1, 0.2, 0.3]  # thousand updates
    assert drawn(axis) == [(x, [0, 50, 100]), (x, [0, 5, 30]), (x[:2], [0, 70])]
    assert {y for x, y in axis.collections[0].get_paths()[0].vertices if x == 0.2} == {40, 60}
    names = ["DROL(16)", "FQL", "FQL (unfinished)"]
    assert [text.get_text() for text in grid.legend.get_texts()] == names
    assert grid.legend.get_title().get_text() == "lr 0.001; steps 300"


def test_against_k_by_hand(runs_dir):
    """Of candidates the last tenth of training, and the root mean square distance over pairs."""
    sweeps = figures.sweeps(figures.load_runs(runs_dir)[0])
    (axis,) = figures.ksweep(sweeps).axes.flat
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "16", "64"]
    assert drawn(axis)[0] == ([0, 1, 2], [12, 52, 32])
    distance, loss = figures.scaling(sweeps).axes.flat
    assert drawn(distance)[0][1] == pytest.approx([0, 1.6, 6.4])
    assert drawn(loss)[0][1] == pytest.approx([1, 1 / 16, 1 / 64])


def test_only_its_own_files_are_written(runs_dir, tmp_path, monkeypatch):
    """Below the home folder, beside others of like names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "paper").mkdir()
    theirs = [tmp_path / "paper" / name for name in ("results.tex", "learning_curves.pdf")]
    for path in theirs:
        path.write_text("mine")
    (tmp_path / "runs").symlink_to(runs_dir)
    figures.main(["--run-dir=~/runs", "--out=~/paper"])
    assert [path.read_text() for path in theirs] == ["mine"] * 2
    ours = "results.md results.csv runs.csv learning_curves.png ksweep.png scaling.png"
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert names == {*ours.split(), *(path.name for path in theirs)}
    with pytest.raises(SystemExit, match="^error: ~nobody-here"):
        figures.main(["--out=~nobody-here/x"])

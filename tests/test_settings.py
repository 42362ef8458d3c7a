"""Tests of the settings: what is published, which names are taken, help, refusals, and what a run
keeps."""

import dataclasses
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import drol
import fql
from tests.helpers import ROOT, command, every_program, read, refused, saved

SHORT = (
    "antmaze-large", "antmaze-giant", "humanoidmaze-medium", "humanoidmaze-large",
    "antsoccer-arena", "cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4",
)  # fmt: skip
PUBLISHED = read(ROOT / "testdata" / "published_settings.csv")


def resolved(program, **settings):
    """Args and the run's folder."""
    return program.resolve(program.Args(**settings))


def weight_of(program):
    return "bc_coef" if program is drol else "alpha"


# -------------------- what is published


@every_program
def test_the_table_is_the_published_one(program):
    """--env-id and --task alone give DROL(16) or FQL. DROL* has the best K of a task: its bc_coef
    is DROL(16)'s in OGBench and typed in D4RL."""
    rows = [row for row in PUBLISHED if row["method"] == program.ALGORITHM]
    assert len(rows) == (136 if program is drol else 68)
    for row in rows:
        settings = {"env_id": row["full_name"]}
        if row["benchmark"] == "ogbench":
            settings = {"env_id": row["family"], "task": int(row["task"])}
        if row["suite"] == "DROL*":
            settings["k"] = int(row["k"])
            if row["benchmark"] == "d4rl":
                settings["bc_coef"] = float(row["bc_coef"])
        args, _ = resolved(program, **settings)
        assert args.env_id == row["full_name"]
        assert (args.q_agg, args.discount) == (row["q_agg"], float(row["discount"])), row
        assert args.steps == int(row["steps"])
        for name in ("k", "bc_coef", "alpha"):
            assert not row[name] or getattr(args, name) == float(row[name]), row
    args = program.Args(env_id="scene")  # and of all tasks alike
    common = (args.batch_size, args.lr, args.tau, args.hidden_dims, args.eval_episodes)
    assert common == (256, 3e-4, 0.005, (512, 512, 512, 512), 50)


@pytest.mark.slow
def test_default_tasks_are_ogbenchs():
    for env_id in SHORT:
        env_name = resolved(drol, env_id=env_id)[0].env_id
        assert env_name == resolved(fql, env_id=env_id)[0].env_id
        family, task = env_name.removesuffix("-v0").split("-task")
        assert drol.make_env(f"{family}-v0").unwrapped._reward_task_id == int(task), env_id


@every_program
@pytest.mark.parametrize("env_id", ["scene", "pen-human-v1"])
def test_what_is_typed_beats_what_is_published(program, env_id):
    typed = {"discount": 0.0, "q_agg": "min", weight_of(program): 0.0, "steps": 7}
    args, _ = resolved(program, env_id=env_id, **typed)
    assert {name: getattr(args, name) for name in typed} == typed


# -------------------- names


WITHOUT_ROW = [  # as typed, the environment's name
    ("cube-triple", "cube-triple-play-singletask-v0"),
    ("puzzle-4x5-play-singletask-task3-v0", "puzzle-4x5-play-singletask-task3-v0"),
    ("humanoidmaze-giant", "humanoidmaze-giant-navigate-singletask-v0"),
    ("antmaze-medium", "antmaze-medium-navigate-singletask-v0"),  # not D4RL's
    ("antmaze-large-stitch", "antmaze-large-stitch-singletask-v0"),  # not navigate's
    ("scene-noisy-singletask-v0", "scene-noisy-singletask-v0"),
    ("antmaze-umaze-v0", "antmaze-umaze-v0"),
    ("pen-human-v0", "pen-human-v0"),
    ("my.tasks:pen-human-v1", "my.tasks:pen-human-v1"),
    ("my.tasks:cube-double", "my.tasks:cube-double"),
]


@every_program
@pytest.mark.parametrize("env_id, env_name", WITHOUT_ROW, ids=[x for x, _ in WITHOUT_ROW])
def test_a_name_without_a_row_needs_a_weight_and_has_defaults(program, env_id, env_name):
    """It never gets another task's values."""
    weight = weight_of(program)
    args, folder = resolved(program, env_id=env_id, **{weight: 2.0})
    assert args.env_id == env_name and env_name in str(folder)
    assert (args.discount, args.q_agg, getattr(args, weight)) == (0.99, "mean", 2.0)
    flag = f"--{weight.replace('_', '-')}"
    with pytest.raises(SystemExit, match=f"^error: .*{flag}") as caught:
        resolved(program, env_id=env_id)
    assert "\n" not in str(caught.value)


@every_program
def test_a_full_name_is_the_run_of_the_short_one(program):
    for short, task, full in (
        ({"env_id": "scene"}, 2, "scene-play"),
        ({"env_id": "antmaze-large", "task": 4}, 4, "antmaze-large-navigate"),
    ):
        expected, name = resolved(program, **short), f"{full}-singletask-task{task}-v0"
        assert expected[0].env_id == name and resolved(program, env_id=name) == expected
        assert resolved(program, env_id=full, task=task) == expected


def test_run_folders(tmp_path):
    folder = lambda program, **settings: str(resolved(program, **settings)[1])
    scene = "runs/scene-play-singletask-task2-v0"
    assert folder(drol, env_id="scene") == f"{scene}/drol-k16-bc_coef3/seed0"
    given = {"task": 5, "seed": 3, "k": 4, "bc_coef": 0.25, "exp_name": "my-1.x"}
    own = f"{scene.replace('2', '5')}/my-1.x-k4-bc_coef0.25/seed3"
    assert folder(drol, env_id="scene", **given) == own
    home = Path.home() / "x/pen-human-v1/fql-alpha10000/seed0"
    assert folder(fql, env_id="pen-human-v1", run_dir="~/x") == str(home)
    copy = runpy.run_path(shutil.copy(drol.__file__, tmp_path / "mine.py"))
    assert copy["Args"](env_id="scene").exp_name == "mine"  # does not go on with drol.py's runs


# -------------------- what is printed


@every_program
def test_resolved_settings_are_printed_before_data_is_loaded(program, capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "arrays.npz").write_bytes(b"damaged")
    refused(program, command(tmp_path / "data", tmp_path, "--lr", "1e-3", program=program))
    printed = dict(re.findall(r"^  (\w+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert {"lr": "0.001", "discount": "0.99", "q_agg": "mean"}.items() <= printed.items()
    assert {field.name for field in dataclasses.fields(program.Args)} <= printed.keys()


# -------------------- refusals


@every_program
@pytest.mark.parametrize("flags, words", [
    (["--env-id", "cube-singel"], ["cube-singel", *SHORT]),
    (["--env-id", "pen-human-v1", "--task", "1"], ["--task", "pen-human-v1"]),
])  # fmt: skip
def test_wrong_settings_are_refused_in_a_sentence(program, tmp_path, flags, words):
    refused(program, command(tmp_path / "data", tmp_path / "runs", *flags, program=program), *words)
    assert not list(tmp_path.iterdir())


WRONG = {
    "seed": -1, "steps": 0, "discount": "nan", "batch-size": 0, "lr": -1, "tau": 2,
    "hidden-dims": 0, "eval-interval": 0, "eval-episodes": 0, "eval-envs": -2, "log-interval": 0,
    "checkpoint-interval": 0, "exp-name": "ablation/lr",
}  # fmt: skip
WRONG_OF = {"drol": {"k": 0, "bc-coef": -0.1}, "fql": {"flow-steps": 0, "alpha": "nan"}}


@every_program
@pytest.mark.parametrize("wrong", [
    {}, {"tau": -0.1, "discount": 1.1, "lr": 0}, {"tau": "nan", "lr": "nan", "exp-name": "../x"},
    {"exp-name": ""}, {"run-dir": ""}, {"run-dir": "not-\udcff"}, {"task": 0}, {"device": "gpu"},
    {"q-agg": "max"}, {"batch-size": "many"}, {"snapshot-interval": 1},
])  # fmt: skip
def test_wrong_values_are_refused_all_at_once(program, tmp_path, capsys, wrong):
    wrong = wrong or WRONG | WRONG_OF[program.ALGORITHM]
    flags = [text for name, value in wrong.items() for text in (f"--{name}", value)]
    with pytest.raises(SystemExit) as caught:
        program.main(command(tmp_path, tmp_path / "runs", *flags, program=program))
    assert caught.value.code == 2 and not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for name in wrong:
        assert re.search(rf"\b{name.replace('-', '[-_]')}\b", said), name


# -------------------- every setting counts

FREE = {"steps", "log_interval", "checkpoint_interval", "data_dir", "run_dir", "versions"}


@every_program
def test_another_value_is_refused_when_a_run_goes_on(program, corridor_run, tmp_path):
    """Of any setting but those that may change: a setting that somebody adds is guarded too."""
    folder = corridor_run(program, "runs")
    content, args = saved(folder), command(None, tmp_path / "runs", "--steps", 40, program=program)
    names = {field.name for field in dataclasses.fields(program.Args)} | {"versions"}
    assert names <= content.keys() and names > FREE
    for name in names:
        torch.save(content | {name: "another"}, folder / "checkpoint.pt")
        if name in FREE:
            program.main(args)
            torch.save(content, folder / "checkpoint.pt")
        else:
            said = refused(program, args, folder, f"{name} another, not", "--exp-name")
            assert str(content[name]) in said

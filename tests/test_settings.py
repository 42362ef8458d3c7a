"""Tests of the settings: defaults, the published table, help, refusals, and what a run keeps."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

import drol
import fql
from tests.helpers import ROOT, command, every_program, read, refused

PUBLISHED = read(ROOT / "testdata" / "published_settings.csv")
COMMON = {
    "task": None, "seed": 0, "steps": None, "compile": False, "matmul_precision": "highest",
    "device": "cuda" if torch.cuda.is_available() else "cpu", "discount": None, "q_agg": None,
    "batch_size": 256, "lr": 3e-4, "tau": 0.005, "hidden_dims": (512, 512, 512, 512),
    "eval_interval": 100_000, "eval_episodes": 50, "eval_envs": 10, "log_interval": 5_000,
    "checkpoint_interval": 5_000, "snapshot_interval": 0, "data_dir": None, "run_dir": "runs",
    "overwrite": False, "track": False,
}  # fmt: skip
OWN = {
    "drol": {"exp_name": "drol", "k": 16, "bc_coef": None},
    "fql": {"exp_name": "fql", "alpha": None, "flow_steps": 10, "normalize_q": False},
}


class Stop(Exception):
    """Raised where a test has seen enough."""


def resolved(program, **settings):
    """Args, the environment's name and the run's folder."""
    args = program.Args(**settings)
    return args, *program.resolve(args)


# -------------------- defaults and what is published


@every_program
def test_defaults(program):
    assert vars(program.Args(env_id="x")) == {"env_id": "x", **COMMON, **OWN[program.ALGORITHM]}


@every_program
def test_the_table_is_the_published_one(program):
    """--env-id and --task alone give DROL(16) or FQL. DROL* has the best K of a task: its bc_coef
    is DROL(16)'s in OGBench and typed in D4RL."""
    rows = [row for row in PUBLISHED if row["method"] == program.ALGORITHM]
    assert len(rows) == (136 if program is drol else 68)
    known = set()
    for row in rows:
        settings = {"env_id": row["full_name"]}
        if row["benchmark"] == "ogbench":
            settings = {"env_id": row["family"], "task": int(row["task"])}
        if row["suite"] == "DROL*":
            settings["k"] = int(row["k"])
            if row["benchmark"] == "d4rl":
                settings["bc_coef"] = float(row["bc_coef"])
        args, env_name, _ = resolved(program, **settings)
        known.add(args.env_id)
        assert env_name == row["full_name"]
        assert (args.q_agg, args.discount) == (row["q_agg"], float(row["discount"])), row
        assert args.steps == int(row["steps"])
        for name in ("k", "bc_coef", "alpha"):
            assert not row[name] or getattr(args, name) == float(row[name]), row
    assert known == set(program.PUBLISHED) - {"pointmaze-medium"} and len(known) == 28


@pytest.mark.slow
def test_default_tasks_are_ogbenchs():
    for env_id, (dataset, task, *_) in drol.PUBLISHED.items():
        assert fql.PUBLISHED[env_id][:2] == (dataset, task)
        if dataset:
            name = f"{env_id}-{dataset}-singletask-v0"
            env = drol.make_env(name)
            assert env.unwrapped._reward_task_id == task, env_id
            env.close()
            args, env_name, _ = resolved(drol, env_id=env_id)
            assert args.task == task and f"-task{task}-" in env_name


@every_program
def test_what_is_typed_beats_what_is_published(program):
    weight = "bc_coef" if program is drol else "alpha"
    typed = {"discount": 0.0, "q_agg": "min", weight: 0.0, "steps": 7}
    for env_id in ("scene", "pen-human-v1"):
        args, _, _ = resolved(program, env_id=env_id, **typed)
        assert {name: getattr(args, name) for name in typed} == typed


def test_run_folders():
    folder = lambda program, **settings: str(resolved(program, **settings)[2])
    scene = "scene-play-singletask-task2-v0"
    assert folder(drol, env_id="scene") == f"runs/{scene}/drol-k16-bc_coef3/seed0"
    assert folder(drol, env_id="scene", task=2) == f"runs/{scene}/drol-k16-bc_coef3/seed0"
    assert folder(drol, env_id="scene", task=5, seed=3, k=4, bc_coef=0.25, exp_name="mine") == (
        "runs/scene-play-singletask-task5-v0/mine-k4-bc_coef0.25/seed3"
    )
    assert folder(fql, env_id="pen-human-v1", run_dir="~/x") == str(
        Path.home() / "x/pen-human-v1/fql-alpha10000/seed0"
    )


# -------------------- what is printed


@every_program
def test_help_shows_every_comment(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    out = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    fields = re.findall(r"^    (\w+): .*?(?:  # (.*))?$", inspect.getsource(program.Args), re.M)
    assert [name for name, _ in fields] == list(vars(program.Args(env_id="x")))
    assert sum(comment != "" for _, comment in fields) >= 20
    for name, comment in fields:
        assert f"--{name.replace('_', '-')} " in out.replace(",", " ") and comment in out, name
    assert program.__doc__.split("\n")[0] in out


@every_program
def test_resolved_settings_are_printed_before_data_is_loaded(
    program, capsys, monkeypatch, tmp_path
):
    def stop(*_):
        raise Stop

    monkeypatch.setattr(program, "load_data", stop)
    with pytest.raises(Stop):
        program.main(["--env-id", "cube-single", "--run-dir", str(tmp_path), "--lr", "1e-3"])
    printed = dict(re.findall(r"^  (\w+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    args, _, folder = resolved(program, env_id="cube-single", run_dir=str(tmp_path), lr=1e-3)
    expected = {name: str(value) for name, value in vars(args).items()}
    assert printed == expected | {"folder": str(folder)}
    assert (printed["task"], printed["steps"], printed["discount"]) == ("2", "1000000", "0.99")


# -------------------- refusals


@every_program
@pytest.mark.parametrize("flags, words", [
    (["--env-id", "cube-singel"], ["--env-id cube-singel", *drol.PUBLISHED]),
    (["--env-id", "pen-human-v1", "--task", "1"], ["--task"]),
    (["--eval-episodes", "5", "--eval-envs", "2"], ["--eval-episodes", "multiple", "--eval-envs"]),
    (["--eval-episodes", "1", "--eval-envs", "2"], ["--eval-episodes", "multiple", "--eval-envs"]),
])  # fmt: skip
def test_wrong_settings_are_refused_in_a_sentence(program, tmp_path, flags, words):
    refused(program, command(tmp_path / "data", tmp_path / "runs", *flags), *words)
    assert not list(tmp_path.iterdir())


WRONG = {
    "seed": -1, "steps": 0, "discount": "nan", "batch-size": 0, "lr": -1, "tau": 2,
    "hidden-dims": 0, "eval-interval": 0, "eval-episodes": 0, "eval-envs": -2, "log-interval": 0,
    "checkpoint-interval": 0, "snapshot-interval": -1,
}  # fmt: skip
WRONG_OF = {"drol": {"k": 0, "bc-coef": -0.1}, "fql": {"flow-steps": 0, "alpha": "nan"}}


def misunderstood(program, tmp_path, capsys, flags):
    """What the program says of flags that it must not accept."""
    with pytest.raises(SystemExit) as caught:
        program.main(command(tmp_path, tmp_path / "runs", *flags))
    assert caught.value.code == 2 and not list(tmp_path.iterdir())
    return capsys.readouterr().err


@every_program
def test_values_out_of_range_are_refused_all_at_once(program, tmp_path, capsys):
    wrong = WRONG | WRONG_OF[program.ALGORITHM]
    flags = [text for name, value in wrong.items() for text in (f"--{name}", value)]
    said = misunderstood(program, tmp_path, capsys, flags)
    for name in wrong:
        assert re.search(rf"^\W*{name.replace('-', '_')}(\.0)?\W*$", said, re.MULTILINE), name
    assert f"{len(wrong)} validation errors" in said and "Traceback" not in said


@every_program
@pytest.mark.parametrize("flags", [
    ["--tau", "-0.1"], ["--discount", "1.1"], ["--lr", "0"], ["--lr", "nan"], ["--tau", "nan"],
    ["--hidden-dims", "16", "0"], ["--task", "0"], ["--device", "gpu"], ["--q-agg", "max"],
    ["--batch-size", "many"], ["--matmul-precision", "low"], ["--routing-dtype", "bfloat16"],
])  # fmt: skip
def test_wrong_values_are_refused(program, tmp_path, capsys, flags):
    said = misunderstood(program, tmp_path, capsys, flags)
    name = flags[0].removeprefix("--")
    assert (name in said or name.replace("-", "_") in said) and "Traceback" not in said


# -------------------- every setting counts


@every_program
def test_every_setting_is_read(program):
    """As args.name, outside of Args."""
    names = {
        node.attr for node in ast.walk(ast.parse(Path(program.__file__).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("args", "self.args")
    }  # fmt: skip
    assert names == {field.name for field in dataclasses.fields(program.Args)}


@every_program
def test_another_value_is_refused_when_a_run_goes_on(program, finished):
    """Of any setting but those that may change: a setting that somebody adds is guarded too."""
    folder = finished(program)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    before = saved["args"]
    assert before.keys() == {field.name for field in dataclasses.fields(program.Args)}
    assert set(program.MAY_CHANGE) == {
        "steps", "log_interval", "checkpoint_interval", "snapshot_interval", "run_dir",
        "overwrite", "track",
    }  # fmt: skip
    run = program.Run(program.Args(**before), saved["env_name"], folder, saved["dims"])
    for name in before:
        torch.save(saved | {"args": before | {name: "another"}}, folder / "checkpoint.pt")
        if name in program.MAY_CHANGE:
            run.load()
        else:
            with pytest.raises(SystemExit, match=f"^error: .* {name} another, not ") as caught:
                run.load()
            assert str(before[name]) in str(caught.value)


@every_program
def test_a_run_that_goes_on_with_another_value_is_refused_by_the_command(
    program, finished, data_dir, tmp_path
):
    folder = finished(program)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    flags = ["--steps", 40, "--lr", "1e-2"]
    words = [folder, "lr 0.0003, not 0.01", "--exp-name", "--overwrite"]
    refused(program, command(data_dir, tmp_path / "runs", *flags), *words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files

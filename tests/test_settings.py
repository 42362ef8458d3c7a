"""Tests of the settings: defaults, published presets, where each value came from, refusals."""

import re
from pathlib import Path

import gymnasium
import pytest
import torch

import drol
import fql
from tests.corridor import install, train
from tests.helpers import PROGRAMS, ROOT, command, every_program, read, refused

PUBLISHED = read(ROOT / "testdata" / "published_settings.csv")
NOT_PUBLISHED = "pointmaze-medium"
COMMON = {
    "task": None, "seed": 0, "discount": None, "q_agg": None, "steps": None, "batch_size": 256,
    "lr": 3e-4, "tau": 0.005, "hidden_dims": (512, 512, 512, 512), "eval_interval": 100_000,
    "eval_episodes": 50, "eval_envs": 10, "log_interval": 5_000, "checkpoint_interval": 10_000,
    "snapshot_interval": 0, "data_dir": None, "run_dir": Path("runs"), "device": "auto",
    "compile": "off", "overwrite": False, "track": False, "wandb_project_name": "drol",
    "wandb_entity": None,
}  # fmt: skip
OWN = {
    "drol": {"k": 16, "bc_coef": None, "actor_q_agg": "min", "normalize_q": True,
             "routing_dtype": "float32"},
    "fql": {"alpha": None, "flow_steps": 10, "actor_q_agg": "mean", "normalize_q": False},
}  # fmt: skip


class Stop(Exception):
    """Raised where a test has seen enough."""


def resolved(program, **settings):
    args = program.Args(**settings)
    return args, *program.resolve(args, set(settings))


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path):
    """printed(*flags) is what drol.py prints of its settings, {name: (value, where from)}."""

    def stop(*args):
        raise Stop

    def read_settings(*flags):
        with pytest.raises(Stop):
            drol.main(["--run-dir", str(tmp_path), *flags])
        out = capsys.readouterr().out
        rows = re.findall(r"^ +(\w+) +(.*?) +(command line|default|published)$", out, re.MULTILINE)
        return {name: (value, origin) for name, value, origin in rows}

    monkeypatch.setattr(drol, "load_data", stop)
    return read_settings


# ----------------------------------------------------------------------- defaults and presets


@every_program
def test_defaults(program):
    assert vars(program.Args(env_id="x")) == {"env_id": "x", **COMMON, **OWN[program.ALGORITHM]}


@every_program
@pytest.mark.parametrize("benchmark, rows_of", [
    ("ogbench", {"drol": 100, "fql": 50}),
    ("d4rl", {"drol": 36, "fql": 18}),
])  # fmt: skip
def test_presets_are_the_published_settings(program, benchmark, rows_of):
    name = program.ALGORITHM
    rows = [row for row in PUBLISHED if (row["method"], row["benchmark"]) == (name, benchmark)]
    assert len(rows) == rows_of[name]
    for row in rows:
        if benchmark == "ogbench":
            settings = {"env_id": row["family"], "task": int(row["task"])}
        else:
            settings = {"env_id": row["full_name"]}
        if row["suite"] == "DROL*":  # DROL(16) is the default
            settings["k"] = int(row["k"])
            if benchmark == "d4rl":
                settings["bc_coef"] = float(row["bc_coef"])
        args, task, origin = resolved(program, **settings)
        assert task.name == row["full_name"]
        assert (args.q_agg, args.discount) == (row["q_agg"], float(row["discount"])), row
        assert args.steps == int(row["steps"])
        for key in ("k", "bc_coef", "alpha"):
            if row[key]:
                assert getattr(args, key) == float(row[key]), row
        assert origin["discount"] == origin["q_agg"] == "published"
        assert resolved(program, env_id=row["full_name"])[1] == task


@every_program
def test_every_preset_is_in_the_published_table(program):
    rows = [row for row in PUBLISHED if row["method"] == program.ALGORITHM]
    families = {row["family"] for row in rows if row["benchmark"] == "ogbench"}
    assert set(program.PRESETS) == families | {NOT_PUBLISHED}
    assert set(program.D4RL) == {r["full_name"] for r in rows if r["benchmark"] == "d4rl"}


def test_what_is_not_published_says_so():
    """pointmaze-medium takes the settings of the mazes whose coefficient lies in the middle."""
    args, task, origin = resolved(drol, env_id=NOT_PUBLISHED)
    assert task.name == "pointmaze-medium-navigate-singletask-task1-v0"
    assert origin["bc_coef"] == origin["discount"] == origin["q_agg"] == "not published"
    assert (args.discount, args.q_agg) == (0.995, "mean")


def test_a_row_that_is_added_says_where_it_is_from(monkeypatch):
    row = drol.Preset("navigate", 1, 0.995, "min", 0.1, "not published")
    monkeypatch.setitem(drol.PRESETS, "antmaze-medium", row)
    args, task, origin = resolved(drol, env_id="antmaze-medium", task=3)
    assert task.name == "antmaze-medium-navigate-singletask-task3-v0" and args.bc_coef == 0.1
    assert origin["bc_coef"] == origin["discount"] == origin["q_agg"] == "not published"


@pytest.mark.slow
def test_default_tasks_are_ogbenchs():
    for family, preset in drol.PRESETS.items():
        name = f"{family}-singletask-v0"
        env = gymnasium.make(name, disable_env_checker=True)
        assert env.unwrapped._reward_task_id == preset.default_task, family
        assert env.unwrapped.num_tasks == 5
        env.close()
        assert fql.PRESETS[family].default_task == preset.default_task
        assert resolved(drol, env_id=family)[0].task == preset.default_task


def test_a_task_is_named_in_one_of_three_ways():
    for settings in (
        {"env_id": "cube-single", "task": 3},
        {"env_id": "cube-single-play-singletask-v0", "task": 3},
        {"env_id": "cube-single-play-singletask-task3-v0"},
        {"env_id": "cube-single-play-singletask-task3-v0", "task": 3},
    ):
        args, task, _ = resolved(drol, **settings)
        assert task.name == "cube-single-play-singletask-task3-v0"
        assert (task.dataset, task.number, args.task) == ("cube-single-play-v0", 3, 3)


def test_folders_of_official_data():
    home = Path.home()
    assert resolved(drol, env_id="scene")[0].data_dir == home / ".ogbench/data"
    assert resolved(drol, env_id="pen-human-v1")[0].data_dir == home / ".d4rl/datasets"
    assert resolved(drol, env_id="scene", data_dir=Path("~/x"))[0].data_dir == home / "x"


# ------------------------------------------------------------------------- where they came from


@pytest.mark.parametrize("flags, typed", [
    (["--env-id", "cube-single"], ["env_id"]),
    (["--env-id", "cube-single", "--k", "16"], ["env_id", "k"]),
    (["--env-id=cube-single", "--k=16", "--lr=3e-4"], ["env_id", "k", "lr"]),
    (["--env-id", "cube-single", "--discount", "0.99"], ["env_id", "discount"]),
    (["--env-id", "cube-single", "--normalize-q"], ["env_id", "normalize_q"]),
    (["--env-id", "cube-single", "--no-normalize-q"], ["env_id", "normalize_q"]),
    (["--env-id", "cube-single", "--batch_size", "8"], ["env_id", "batch_size"]),
    (["--env-id", "cube-single", "--hidden-dims", "8", "8"], ["env_id", "hidden_dims"]),
])  # fmt: skip
def test_what_is_typed_counts_as_typed_also_at_its_default(printed, flags, typed):
    shown = printed(*flags)
    assert shown.keys() == vars(drol.Args(env_id="x")).keys()
    from_command_line = {name for name, (_, origin) in shown.items() if origin == "command line"}
    assert from_command_line == {*typed, "run_dir"}
    for name in {"discount", "q_agg", "bc_coef"} - set(typed):
        assert shown[name][1] == "published"
    for name in {"lr", "tau", "seed", "device"} - set(typed):
        assert shown[name][1] == "default"


def test_the_command_line_beats_what_is_published(printed):
    shown = printed("--env-id", "cube-single", "--bc-coef", "0", "--q-agg", "min", "--seed", "3")
    assert shown["bc_coef"] == ("0.0", "command line")
    assert shown["q_agg"] == ("min", "command line")
    assert shown["seed"] == ("3", "command line")
    assert shown["discount"] == ("0.99", "published")


def test_flags_that_start_anew_and_track_have_no_opposite():
    for flag in ("--no-overwrite", "--no-track"):
        with pytest.raises(SystemExit) as exit:
            drol.main(["--env-id", "cube-single", flag])
        assert exit.value.code != 0


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_is_used_where_there_is_one(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    choice = lambda **settings: resolved(drol, env_id="scene", **settings)[0].device
    assert choice() == ("cuda" if gpu else "cpu") and choice(device="cpu") == "cpu"
    if gpu:
        assert choice(device="cuda") == "cuda"
    else:
        with pytest.raises(drol.UserError, match="--device cuda"):
            choice(device="cuda")


@every_program
def test_compile_needs_a_compiler(program, monkeypatch, tmp_path):
    args = program.Args("cube-single", compile="on")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(program.UserError, match=r"--compile on: install g\+\+"):
        program.check_args(args)
    (tmp_path / "g++").touch(mode=0o755)
    program.check_args(args)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("flags, words", [
    (["--env-id", "humanoid-medium"], ["humanoid-medium", "humanoidmaze-medium"]),
    (["--env-id", "visual-cube-single-play-singletask-v0"], ["cube-single"]),
    (["--env-id", "cube-single-play-singletask-task9-v0"], ["task9", "cube-single"]),
    (["--env-id", "cube-single-navigate"], ["cube-single"]),
    (["--env-id", "antmaze-large-play"], ["antmaze-large-play-v2"]),
    (["--env-id", "antmaze-large-play-v0"], ["antmaze-large-play-v2"]),
    (["--env-id", "pen-human-v0"], ["pen-human-v1"]),
    (["--env-id", "pen-human-v1", "--task", "1"], ["--task 1", "pen-human-v1"]),
    (["--env-id", "cube-single-play-singletask-task2-v0", "--task", "3"],
     ["--task 3", "contradicts"]),
    (["--lr", "-1"], ["--lr -1", "give 0 to"]),
    (["--lr", "nan"], ["--lr nan"]),
    (["--discount", "-0.1"], ["--discount -0.1"]),
    (["--tau", "-0.1"], ["--tau -0.1"]),
    (["--bc-coef", "-1"], ["--bc-coef -1", "give 0 to"]),
    (["--seed", "-1"], ["--seed -1", "give 0 to"]),
    (["--snapshot-interval", "-1"], ["--snapshot-interval -1", "give 0 to"]),
    (["--k", "0"], ["--k 0", "give 1 to"]),
    (["--steps", "0"], ["--steps 0", "give 1 to"]),
    (["--batch-size", "0"], ["--batch-size 0"]),
    (["--hidden-dims", "16", "0"], ["--hidden-dims", "give 1 to"]),
    (["--eval-interval", "0"], ["--eval-interval 0"]),
    (["--eval-episodes", "0"], ["--eval-episodes 0"]),
    (["--eval-envs", "0"], ["--eval-envs 0"]),
    (["--log-interval", "0"], ["--log-interval 0"]),
    (["--checkpoint-interval", "0"], ["--checkpoint-interval 0"]),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_made(tmp_path, flags, words):
    refused(drol, command(tmp_path / "data", tmp_path / "runs", *flags), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--alpha", "--flow-steps"])
def test_wrong_settings_of_fql(tmp_path, flag):
    refused(fql, command(tmp_path, tmp_path / "runs", flag, "-1"), f"{flag} -1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [
    ["--task", "9"], ["--task", "0"], ["--device", "gpu"], ["--q-agg", "max"], ["--k", "many"],
    ["--alpha", "10"], ["--compile", "yes"], ["--routing-dtype", "float16"],
])  # fmt: skip
def test_flags_that_are_not_understood(capsys, tmp_path, flags):
    with pytest.raises(SystemExit) as exit:
        drol.main(command(tmp_path, tmp_path / "runs", *flags))
    assert exit.value.code == 2 and not list(tmp_path.iterdir())
    assert flags[0] in capsys.readouterr().err


def test_networks_without_a_hidden_layer_are_refused(tmp_path):
    refused(drol, command(tmp_path, tmp_path / "runs", "--hidden-dims"), "--hidden-dims 0")


def test_only_flags_count_as_typed(printed):
    """A folder may have a setting's name."""
    assert printed("--env-id", "cube-single", "--data-dir", "tau")["tau"][1] == "default"


# ---------------------------------------------------------------------------- they have an effect

CHANGES = {
    "drol": [("k", 4), ("bc_coef", 1.0), ("actor_q_agg", "mean"), ("normalize_q", False),
             ("routing_dtype", "bfloat16")],
    "fql": [("alpha", 1.0), ("flow_steps", 2), ("actor_q_agg", "min"), ("normalize_q", True)],
}  # fmt: skip
COMMON_CHANGES = [("seed", 1), ("discount", 0.9), ("q_agg", "min"), ("batch_size", 16),
                  ("lr", 1e-3), ("tau", 0.1), ("hidden_dims", (16, 8))]  # fmt: skip


@every_program
def test_every_setting_of_the_method_changes_the_weights(program, monkeypatch, tmp_path):
    install(monkeypatch)
    monkeypatch.setattr(program, "make_env", drol.make_env)
    start = train(tmp_path / "start", program, steps=3)
    again = train(tmp_path / "again", program, steps=3)
    assert all(torch.equal(start[name], again[name]) for name in start)
    for name, value in CHANGES[program.ALGORITHM] + (COMMON_CHANGES if program is drol else []):
        changed = train(tmp_path / name, program, steps=3, **{name: value})
        same = [torch.equal(start[x], changed[x]) for x in start]
        assert not all(same), name


def test_both_programs_have_the_same_flags_but_their_own():
    flags = [set(vars(program.Args(env_id="x"))) for program in PROGRAMS.values()]
    assert flags[0] ^ flags[1] == {"k", "bc_coef", "routing_dtype", "alpha", "flow_steps"}

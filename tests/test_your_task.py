"""docs/your_task.md: its module runs with both programs, and its mistakes get a sentence."""

import re
import sys

import numpy as np
import pytest

import drol
import fql
from tests.helpers import ROOT, SMALL, every_program, read, refused, run_of

MODULE = re.search("```python\n(.*?)```", (ROOT / "docs" / "your_task.md").read_text(), re.S)[1]
WEIGHT = {drol: ["--bc-coef", "1"], fql: ["--alpha", "10", "--normalize-q"]}


def point_data():
    s, a = np.random.default_rng(0).uniform(-1, 1, (2, 200, 2)).astype(np.float32)
    near = np.linalg.norm(s, axis=1) < 0.1
    return {
        "observations": s,
        "actions": a,
        "next_observations": s + np.float32(0.1) * a,
        "rewards": near - np.float32(1),
        "masks": 1 - near,
    }


@pytest.fixture
def task(tmp_path, monkeypatch):
    """task(program, flags, code=..., **arrays): the command of the page's module, with more code,
    and with arrays in the place of those of its file."""
    monkeypatch.syspath_prepend(tmp_path)

    def command(program, *flags, code="", **arrays):
        sys.modules.pop("my_tasks", None)
        (tmp_path / "my_tasks.py").write_text(MODULE + "\n\n" + code)
        data = {key: x for key, x in (point_data() | arrays).items() if x is not None}
        np.savez(tmp_path / "point.npz", **data)
        folders = ["--data-dir", str(tmp_path), "--run-dir", str(tmp_path / "runs")]
        return ["--env-id", "my_tasks:Point-v0", *WEIGHT[program], *folders, *SMALL, *flags]

    return command


@every_program
def test_the_module_trains_and_is_evaluated(program, task, tmp_path):
    """An own environment's name is in its folder."""
    program.main(task(program))
    (run,) = (tmp_path / "runs").glob("my_tasks:Point-v0/*/seed0")
    (row,) = read(run / "eval.csv")
    assert 0 <= float(row["score"]) <= 100 and -100 < float(row["return"]) < 0
    assert program.load_policy(run / "checkpoint.pt")(np.zeros(2)).shape == (2,)


@every_program
def test_data_without_an_environment_trains_and_is_not_evaluated(program, task, tmp_path, capsys):
    make = "make_env_and_datasets"
    code = f"old = {make}\ndef {make}(*a, env_only=False, **k):\n"
    code += "    return None if env_only else (None, old(*a, **k)[1], None)\n"
    program.main(task(program, code=code))
    assert "no evaluation" in capsys.readouterr().out
    assert not (run_of(tmp_path / "runs") / "eval.csv").exists()


@pytest.mark.parametrize(
    "code, arrays, words",
    [
        ("", {"masks": None}, ["masks"]),
        ("", {"rewards": np.zeros((200, 1))}, ["rewards", "(200, 1)"]),
        ("", {"rewards": np.full(200, np.nan)}, ["rewards"]),
        ("", {"rewards": np.full(200, 1e300)}, ["rewards"]),
        ("", {"rewards": np.full(200, "high")}, ["rewards", "high"]),
        ("", {"masks": np.full(200, 255)}, ["masks", "0 to 1"]),
        ("", {"actions": np.full((200, 2), 7.0)}, ["100.0%", "[-1, 1]", "7"]),
        ("", {key: np.zeros((0, *x.shape[1:])) for key, x in point_data().items()}, ["(0, 2)"]),
        ("", dict.fromkeys(("observations", "next_observations"), np.zeros((200, 3))), ["(3,)"]),
        ("Point.action_space = gymnasium.spaces.Box(-2, 2, (2,))", {}, ["-2.0", "-1.0"]),
        ("Point.action_space = gymnasium.spaces.Discrete(4)", {}, ["Discrete(4)"]),
        ("Point.reset = None", {}, ["reset"]),
        ("Point.step = lambda self, action: 1 / 0", {}, ["division by zero", "my_tasks.py:"]),
        ("raise ImportError('half a module')", {}, ["half a module"]),
        ("del make_env_and_datasets", {}, ["make_env_and_datasets"]),
    ],
)
def test_mistakes_are_refused_before_training(code, arrays, words, task, tmp_path):
    refused(drol, task(drol, code=code, **arrays), "my_tasks" if code else "", *words)
    assert not list((tmp_path / "runs").glob("*/*/*/*"))

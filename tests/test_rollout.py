"""Tests of tools/rollout.py: what it plays, prints and records."""

import os
import subprocess
import sys

import imageio
import numpy as np
import pytest
import torch

import drol
from tests import fake
from tests.helpers import ADROIT, ROOT, every_program, refused
from tools import rollout

CUBE = ROOT / "results" / "reproduction" / "cube-single-drol-k16.pt"


def play(capsys, *args):
    """The lines printed, each as {word: number}."""
    rollout.main(list(map(str, args)))
    out = capsys.readouterr().out.replace("episode ", "episode")
    words = [line.split() for line in out.splitlines() if line.startswith(("episode", "mean"))]
    return {w[0]: dict(zip(w[1::2], map(float, w[2::2]), strict=True)) for w in words}


@pytest.fixture
def checkpoint(corridor_run):
    """Of a run in the fake environment."""
    return corridor_run(drol, "runs") / "checkpoint.pt"


def test_every_episode_is_another_one_and_its_numbers_are_known(checkpoint, corridors, capsys):
    rows = play(capsys, checkpoint, "--episodes", 6, "--seed", 4)
    env = corridors[-1]
    assert [seed for seed, _ in env.played] == [drol.make_seed(4, i) for i in range(6)]
    for i, (seed, actions) in enumerate(env.played):
        length, success = fake.outcome(seed)
        total = pytest.approx(actions[:, 0].sum() - length, abs=0.051)
        assert rows[f"episode{i}"] == {"score": 100 * success, "return": total, "length": length}
    for key, mean in rows.pop("mean").items():
        assert mean == pytest.approx(np.mean([row[key] for row in rows.values()]), abs=0.1)
    again = play(capsys, checkpoint, "--episodes", 6, "--seed", 4)
    assert rows == {key: again[key] for key in rows}
    assert rows["episode0"] != play(capsys, checkpoint, "--seed", 5)["episode0"]


@every_program
def test_the_actions_are_the_checkpoints_policys(program, corridor_run, corridors, capsys):
    path = corridor_run(program, "runs") / "checkpoint.pt"
    play(capsys, path, "--episodes", 1, "--seed", 2)
    policy = program.load_policy(path, seed=2)
    ((seed, actions),) = corridors[-1].played
    expected = [policy(np.array([seed % 1000 / 1000, t / 10])) for t in range(len(actions))]
    assert np.array_equal(actions, expected)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_video_shows_the_first_episodes(checkpoint, corridors, capsys, tmp_path, suffix):
    path = tmp_path / "films" / f"film{suffix}"
    play(capsys, checkpoint, "--episodes", 3, "--video-episodes", 2, "--video", path)
    lengths = [len(actions) for _, actions in corridors[-1].played]
    expected = [20 * t for length in lengths[:2] for t in range(length + 1)]  # the start too
    frames = [frame.mean() for frame in imageio.mimread(path)]
    if suffix == ".gif":  # MP4 repeats and blends frames
        assert frames == pytest.approx(expected, abs=2)
    assert len(frames) == pytest.approx(len(expected), abs=1)
    assert list(path.parent.iterdir()) == [path]  # no half-written file is left


def test_an_environment_that_draws_nothing(checkpoint, monkeypatch, tmp_path):
    """One's own may have neither a MuJoCo model nor images."""
    monkeypatch.setattr(fake.Corridor, "render", lambda env: None)
    make = fake.Corridor.__init__
    monkeypatch.setattr(fake.Corridor, "__init__", lambda env: make(env) or delattr(env, "model"))
    refused(rollout, [checkpoint, "--video", tmp_path / "a.gif"], "rgb_array")
    assert not (tmp_path / "a.gif").exists()


def test_mistakes_are_refused(checkpoint, monkeypatch, tmp_path):
    refused(rollout, [tmp_path / "none.pt"], "none.pt")
    refused(rollout, [checkpoint, "--video", "film.avi"], ".gif")
    refused(rollout, [checkpoint, "--video", "~nobody-here/a.gif"], "--video")
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes()[:1000])
    refused(rollout, [tmp_path / "half.pt"], "half.pt")
    torch.save({"algorithm": "sac"}, tmp_path / "other.pt")
    refused(rollout, [tmp_path / "other.pt"], "other.pt")
    monkeypatch.setattr(fake, "Corridor", lambda: None)  # data alone
    refused(rollout, [checkpoint], "without an environment")


def in_a_process(*args):
    """A process with a real renderer, if there is one: no test has set MUJOCO_GL for it."""
    env = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    call = [sys.executable, *map(str, args)]
    result = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    if "MuJoCo needs EGL" in result.stderr:
        pytest.skip("there is no EGL")
    return result


@pytest.mark.slow
def test_the_published_checkpoint_is_filmed(tmp_path):
    path = tmp_path / "a.gif"
    result = in_a_process("-m", "tools.rollout", CUBE, "--episodes", 1, "--video", path)
    assert (result.returncode, result.stderr) == (0, "")
    words = result.stdout.splitlines()[-1].split()
    assert words[:3] == ["mean", "score", "100.0"]
    frames = np.array(imageio.mimread(path))
    assert len(frames) == float(words[-1]) + 1 and not np.array_equal(frames[0], frames[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["antmaze-medium-navigate-singletask-task1-v0", ADROIT])
def test_other_environments_can_be_drawn(name):
    code = "import os, drol; from tools import rollout; os.environ['MUJOCO_GL'] = 'egl';"
    code += f"env = drol.make_env('{name}'); env.reset(seed=0); print(rollout.draw(env).std())"
    assert float(in_a_process("-c", code).stdout) > 10

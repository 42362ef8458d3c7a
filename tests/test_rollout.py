"""Tests of tools/rollout.py: what it plays, prints and records."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio
import numpy as np
import ogbench
import pytest
import torch

import drol
from tests.corridor import install, outcome, train
from tests.helpers import ADROIT, ROOT, command, every_program, run_of
from tools import rollout


@pytest.fixture
def tidy(monkeypatch):
    """What the program sets for its process is put back."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture
def corridors(monkeypatch, tidy):
    return install(monkeypatch)


def answer_of_the_probe(monkeypatch, code):
    run = lambda *args, **options: subprocess.CompletedProcess(args, code)
    monkeypatch.setattr(rollout, "subprocess", SimpleNamespace(run=run))


@pytest.fixture
def renderer(monkeypatch):
    """Makes the look for something that draws succeed: corridors draw themselves."""
    answer_of_the_probe(monkeypatch, 0)


def play(capsys, *args):
    """The lines printed, each as {word: number}."""
    rollout.main(list(map(str, args)))
    out = capsys.readouterr().out.replace("episode ", "episode")
    words = [line.split() for line in out.splitlines() if line.startswith(("episode", "mean"))]
    return {w[0]: dict(zip(w[1::2], map(float, w[2::2]), strict=True)) for w in words}


def refusal(*args):
    with pytest.raises(SystemExit) as exit:
        rollout.main(list(map(str, args)))
    message = str(exit.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_every_episode_is_another_one_and_its_numbers_are_known(corridors, capsys, tmp_path):
    train(tmp_path, steps=1)
    rows = play(capsys, tmp_path / "checkpoint.pt", "--episodes", 6, "--seed", 4)
    names = [f"episode{i}" for i in range(6)]
    assert list(rows) == [*names, "mean"]
    env = corridors[-1]
    assert [seed for seed, _ in env.played] == [drol.make_seed(4, i) for i in range(6)]
    for name, (seed, actions) in zip(names, env.played, strict=True):
        length, success = outcome(seed)
        total = actions[:, 0].sum() - length
        assert rows[name] == {
            "score": 100 * success, "return": pytest.approx(total, abs=0.051), "length": length,
        }  # fmt: skip
    for key in ("score", "return", "length"):
        assert rows["mean"][key] == pytest.approx(
            np.mean([rows[name][key] for name in names]), abs=0.1
        )
    assert len(set(rows[name]["length"] for name in names)) > 1
    assert rows == play(capsys, tmp_path / "checkpoint.pt", "--episodes", 6, "--seed", 4)
    assert rows != play(capsys, tmp_path / "checkpoint.pt", "--episodes", 6, "--seed", 5)


def test_the_actions_are_the_checkpoints_policys(corridors, capsys, tmp_path):
    train(tmp_path, steps=1)
    play(capsys, tmp_path / "checkpoint.pt", "--episodes", 1, "--seed", 2)
    policy = drol.load_policy(tmp_path / "checkpoint.pt", seed=2)
    ((seed, actions),) = corridors[-1].played
    expected = [policy(np.array([seed % 1000 / 1000, t / 10])) for t in range(len(actions))]
    assert np.array_equal(actions, expected)


@every_program
def test_a_checkpoint_says_which_program_made_it(program, finished, capsys, tidy, monkeypatch):
    run = finished(program)
    make = ogbench.make_env_and_datasets
    shorter = lambda *args, **options: make(*args, **options, max_episode_steps=20)
    monkeypatch.setattr(ogbench, "make_env_and_datasets", shorter)
    rows = play(capsys, run / "checkpoint.pt", "--episodes", 1)
    assert rows["mean"] == {"score": 0, "return": -20, "length": 20}


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_video_shows_the_first_episodes(corridors, renderer, capsys, tmp_path, suffix):
    train(tmp_path, steps=1)
    path = tmp_path / "films" / f"film{suffix}"
    flags = ["--episodes", 3, "--video-episodes", 2, "--video", path, "--fps", 10]
    play(capsys, tmp_path / "checkpoint.pt", *flags)
    lengths = [len(actions) for _, actions in corridors[-1].played]
    expected = [20 * t for length in lengths[:2] for t in range(length + 1)]  # the start too
    frames = [frame.mean() for frame in imageio.mimread(path)]
    if suffix == ".gif":  # MP4 repeats and blends frames
        assert frames == pytest.approx(expected, abs=2)
        assert imageio.get_reader(path).get_meta_data()["duration"] == 100  # ms per frame
    assert len(frames) == pytest.approx(len(expected), abs=1)
    assert list(path.parent.iterdir()) == [path]  # no half-written file is left
    assert not corridors[-1].model.light_castshadow.any()


def test_a_video_that_cannot_be_written_is_told(
    corridors, renderer, monkeypatch, capsys, tmp_path
):
    def no_space(*args, **options):
        raise OSError(28, "No space left on device")

    train(tmp_path, steps=1)
    (tmp_path / "out.gif").write_text("of before")
    monkeypatch.setattr(imageio, "mimwrite", no_space)
    flags = ["--episodes", 1, "--video", tmp_path / "out.gif"]
    assert "No space left" in refusal(tmp_path / "checkpoint.pt", *flags)
    assert (tmp_path / "out.gif").read_text() == "of before"


def test_mistakes_are_refused(corridors, tmp_path):
    train(tmp_path, steps=1)
    checkpoint = tmp_path / "checkpoint.pt"
    assert "none.pt" in refusal(tmp_path / "none.pt")
    assert ".gif or .mp4" in refusal(checkpoint, "--video", "film.avi")
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes()[:1000])
    assert "half.pt" in refusal(tmp_path / "half.pt")
    torch.save({"algorithm": "sac"}, tmp_path / "other.pt")
    assert "other.pt" in refusal(tmp_path / "other.pt")


FLAGS = [["--episodes", "0"], ["--seed", "-1"], ["--fps", "0"], ["--fps", "101"]]


@pytest.mark.parametrize("flags", [*FLAGS, ["--video-episodes", "0"]], ids=" ".join)
def test_numbers_out_of_range_are_refused(flags, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        rollout.main([str(tmp_path / "checkpoint.pt"), *flags])
    assert exit.value.code == 2
    assert flags[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_where_nothing_can_draw_it_is_told_before_playing(corridors, monkeypatch, tmp_path):
    train(tmp_path, steps=1)
    answer_of_the_probe(monkeypatch, 1)
    assert "EGL" in refusal(tmp_path / "checkpoint.pt", "--video", tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize("screen, tried", [
    ("", ["disabled", "egl", "osmesa"]), (":0", ["disabled", "glfw", "egl", "osmesa"]),
])  # fmt: skip
def test_it_draws_whatever_mujoco_gl_was_set_to(monkeypatch, tidy, tmp_path, screen, tried):
    """As by training in this process, which draws nothing. The first that can draw is taken."""
    seen = []

    def run(*args, **options):
        seen.append(os.environ["MUJOCO_GL"])
        return subprocess.CompletedProcess(args, int(seen[-1] != "osmesa"))

    monkeypatch.setattr(rollout, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    rollout.prepare_video(tmp_path / "a.gif")
    assert seen == tried and os.environ["MUJOCO_GL"] == "osmesa"


def test_scores_alone_need_no_renderer(corridors, monkeypatch, capsys, tmp_path):
    train(tmp_path, steps=1)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    play(capsys, tmp_path / "checkpoint.pt", "--episodes", 1)
    assert os.environ["MUJOCO_GL"] == "disabled"


def test_a_terminal_that_cannot_show_the_path(corridors, renderer, monkeypatch, tmp_path):
    train(tmp_path, steps=1)
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    path = tmp_path / "caf\u00e9.gif"
    rollout.main([str(tmp_path / "checkpoint.pt"), "--episodes", "1", "--video", str(path)])
    screen.flush()
    assert rb"caf\xe9.gif" in screen.buffer.getvalue() and path.exists()


def test_the_published_checkpoint_plays(capsys, tidy, monkeypatch):
    """The actor alone, whose actions are those of the run that it is from."""
    path = ROOT / "results" / "reproduction" / "cube-single-drol-k16.pt"
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["algorithm", "env_name", "dims", "networks"]
    assert all(name.startswith("actor.") for name in saved["networks"])
    observations = np.random.default_rng(0).normal(size=(1000, 28))
    actions = drol.load_policy(path, seed=3)(observations)
    assert actions.sum(dtype=np.float64) == pytest.approx(-1376.00599, abs=0.01)
    rows = play(capsys, path, "--episodes", 1)
    assert rows["mean"]["score"] == 100 and rows["mean"]["length"] == -rows["mean"]["return"] + 1


@pytest.mark.slow
def test_as_a_process_of_its_own(finished, tmp_path):
    """From another folder, with a real environment: nothing on stderr, exit codes."""
    checkpoint = finished(drol) / "checkpoint.pt"
    call = [sys.executable, str(ROOT / "tools" / "rollout.py")]
    options = {"capture_output": True, "text": True, "cwd": tmp_path}
    cube = ROOT / "results" / "reproduction" / "cube-single-drol-k16.pt"
    for path in (checkpoint, cube):
        result = subprocess.run([*call, str(path), "--episodes", "1"], **options)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) == 2
    result = subprocess.run([*call, "none.pt"], **options)
    assert result.returncode == 1 and result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_d4rls_checkpoints_play_too(d4rl_dir, tmp_path, capsys, tidy, monkeypatch):
    drol.main(command(d4rl_dir, tmp_path, env_id=ADROIT))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    rows = play(capsys, checkpoint, "--episodes", 1)
    score = drol.make_env(ADROIT).unwrapped.get_normalized_score(rows["mean"]["return"]) * 100
    assert rows["mean"]["score"] == pytest.approx(score, abs=0.06)
    monkeypatch.delitem(sys.modules, "tools.d4rl_compat")
    monkeypatch.delattr(sys.modules["tools"], "d4rl_compat")
    monkeypatch.setitem(sys.modules, "gym", None)  # as where it is not installed
    assert "pip install --no-deps -r requirements-d4rl.txt" in refusal(checkpoint)
    assert Path(ROOT / "requirements-d4rl.txt").exists()

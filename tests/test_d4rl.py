"""Tests of D4RL's tasks: the simulator against recordings of the original stack, the data, runs."""

import http.client
import json
import os
import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import drol
from tests.helpers import (
    ADROIT,
    ANTMAZE,
    ROOT,
    command,
    every_program,
    read,
    refused,
    run_of,
    same_weights,
)

pytest.importorskip("h5py")
d4rl_compat = pytest.importorskip("tools.d4rl_compat")
D4RLEnv = d4rl_compat.D4RLEnv
RECORDED = np.load(ROOT / "testdata" / "d4rl_mujoco210.npz")  # of MuJoCo 2.1.0 and mujoco-py
RECORDED_TASKS = sorted({key.split("/")[0] for key in RECORDED.files})


def load(name, folder):
    return drol.load_data(drol.find_task(name)[0], folder, "cpu")


# ----------------------------------------------------------------------------- the environments


def start_from_recorded(env, name):
    """Puts the environment in the recorded first state. Where things stand, which was not
    recorded, is fitted to the recorded observation."""
    from d4rl.utils.quatmath import euler2quat
    from scipy.optimize import least_squares

    inner, model, state = env.inner, env.model, RECORDED[f"{name}/Q"][0]
    observe = getattr(inner, "get_obs", None) or inner._get_obs
    first = RECORDED[f"{name}/O"][0]
    env.reset(seed=0)
    inner.set_state(state[: model.nq], state[model.nq :])

    def place(x):
        if "pen" in name:
            model.body_quat[inner.target_obj_bid] = euler2quat([*x, 0])
        elif "door" in name:
            model.body_pos[inner.door_bid] = x
        elif "hammer" in name:
            model.body_pos[model.body_name2id("nail_board"), 2] = x[0]
        else:
            model.body_pos[inner.obj_bid, :2] = x[:2]
            model.site_pos[inner.target_obj_sid] = x[2:]
        inner.sim.forward()
        return observe() - first

    guesses = {"pen": [0.0] * 2, "door": [-0.25, 0.3, 0.3], "hammer": [0.2], "relocate": [0.0] * 5}
    if "antmaze" not in name:
        guess = guesses[name.split("-")[0]]
        place(least_squares(place, guess, xtol=1e-15, ftol=1e-15, gtol=1e-15).x)
    assert np.abs(observe() - first).max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED_TASKS)
def test_a_replay_of_the_original_stack(name):
    """Same start, same actions: the next observation, the rewards, the ends, the spaces."""
    env = D4RLEnv(name)
    start_from_recorded(env, name)
    observations, actions, rewards, ends = (RECORDED[f"{name}/{key}"] for key in "OARD")
    assert env.observation_space.shape == observations.shape[1:]
    assert env.action_space.shape == actions.shape[1:]
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    if "antmaze" in name:
        env.inner.set_target((100, 100))  # out of the way, as in the recording
    steps = [env.step(action) for action in actions]
    ours, our_rewards, our_ends, truncations, _ = zip(*steps, strict=True)
    tolerance = 3e-3 if "antmaze" in name else 1e-9
    assert np.abs(ours[0] - observations[1]).max() < tolerance
    if "pen" in name:  # the pen falls chaotically, so that only the beginning can be compared
        assert np.allclose(our_rewards[:10], rewards[:10], atol=0.02) and not any(our_ends[:10])
        assert True in our_ends and abs(our_ends.index(True) - ends.argmax()) <= 5
    else:
        assert sum(our_rewards) == pytest.approx(rewards.sum(), rel=1e-4)
        assert list(our_ends) == ends.tolist()
    assert truncations[-1] == (name == ADROIT and not our_ends[-1])  # 100 steps are pen's limit


@pytest.mark.parametrize("name, limit", [
    (ADROIT, 100), ("door-human-v1", 200),
    pytest.param(ANTMAZE, 700, marks=pytest.mark.slow),
    pytest.param("antmaze-large-play-v2", 1000, marks=pytest.mark.slow),
    pytest.param("hammer-human-v1", 200, marks=pytest.mark.slow),
    pytest.param("relocate-human-v1", 200, marks=pytest.mark.slow),
])  # fmt: skip
def test_time_limits_truncate(name, limit):
    env = D4RLEnv(name)
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape)
    if name == ADROIT:
        env.inner.step = lambda action: (np.zeros(45), 0.0, False, {})  # a pen never dropped
    results = [env.step(still) for _ in range(limit)]
    truncations = [truncated for _, _, _, truncated, _ in results]
    assert truncations == [False] * (limit - 1) + [True]
    assert not any(terminated for _, _, terminated, _, _ in results)
    env.reset(seed=0)
    env.env._elapsed_steps = limit - 1
    env.inner.step = lambda action: (np.zeros(env.observation_space.shape), 1.0, True, {})
    assert env.step(still)[1:4] == (1.0, True, False)  # an end at the limit is an end


def test_antmaze_starts_and_goals_are_d4rls():
    """200 starts: the ant near the maze's first cell; a goal in the last cell, drawn anew each
    time, and the end there."""
    env = D4RLEnv(ANTMAZE)
    inner, observations, goals = env.inner, [], []
    for seed in range(200):
        observations.append(env.reset(seed=seed)[0])
        goals.append(inner.target_goal)
    observations, goals = np.array(observations), np.array(goals)
    assert np.array_equal(env.reset(seed=7)[0], observations[7])
    assert np.array_equal(inner.target_goal, goals[7])
    assert len(np.unique(goals, axis=0)) == 200
    # the goal's cell is (3, 1) at (0, 8); D4RL adds uniform noise of 0 to 1 and of 0 to 0.5
    assert (goals >= [0, 8]).all() and (goals <= [1.5, 9.5]).all()
    assert np.ptp(goals, axis=0).min() > 1.2
    assert np.allclose(np.linalg.norm(observations[:, 3:7], axis=1), 1)  # the orientation
    joints = np.delete(observations[:, :15] - inner.init_qpos[:15], slice(3, 7), axis=1)
    assert np.abs(joints).max() <= 0.1 and np.ptp(joints, axis=0).min() > 0.18  # uniform
    assert observations[:, 15:].std() == pytest.approx(0.1, rel=0.05)  # velocities are normal
    for name in RECORDED_TASKS[:3]:
        first = RECORDED[f"{name}/O"][0]
        assert (first[:15] >= observations[:, :15].min(0) - 0.01).all()
        assert (first[:15] <= observations[:, :15].max(0) + 0.01).all()
        assert np.abs(first[15:]).max() < 0.5
    env.reset(seed=0)
    inner.set_xy(np.array(inner.target_goal) + [0.3, 0])
    _, reward, terminated, truncated, _ = env.step(np.zeros(8))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert env.get_normalized_score(1.0) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name, tolerance", [
    ("pen-human-v1", 3), ("door-human-v1", 0.1), ("hammer-human-v1", 0.1),
    ("relocate-human-v1", 0.1),
])  # fmt: skip
def test_a_random_policy_scores_d4rls_random_reference(name, tolerance):
    """0 within noise (pen's is large), which an episode without any reward does not score."""
    env, rng, returns = drol.make_env(name), np.random.default_rng(0), []
    assert abs(env.unwrapped.get_normalized_score(0.0)) * 100 > tolerance
    for seed in range(100 if "pen" in name else 20):
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, *ends, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
            over = any(ends)
        returns.append(info["score"])
    assert abs(np.mean(returns)) < tolerance


def test_ogbench_and_d4rl_run_in_one_process():
    for name in ("pointmaze-medium-navigate-singletask-task1-v0", ANTMAZE, ADROIT):
        env = drol.make_env(name)
        observation, _ = env.reset(seed=0)
        np.random.random(5)
        again, _ = env.reset(seed=0)
        other, _ = env.reset(seed=1)
        assert np.array_equal(observation, again) and not np.array_equal(observation, other)
        assert env.step(env.action_space.sample())[0].shape == again.shape
    assert gymnasium.__version__ >= "1"


@pytest.mark.slow
@pytest.mark.parametrize("mujoco_py, simulator", [
    ("raise Exception('You appear to be missing MuJoCo.')", r"mujoco 3\..* in mujoco_py's place"),
    ("from stand_in import *\n__version__ = '2.1.2.14'", "mujoco_py 2.1.2.14"),
])  # fmt: skip
def test_a_real_mujoco_py_is_used_and_a_broken_one_is_not(tmp_path, mujoco_py, simulator):
    """With a module of that name on the path, made of the stand-in's parts, in its own process."""
    (tmp_path / "mujoco_py.py").write_text(mujoco_py)
    (tmp_path / "stand_in.py").write_text(
        "import ast, sys\nfrom pathlib import Path\n"
        f"text = Path({str(ROOT / 'tools' / 'd4rl_compat.py')!r}).read_text()\n"
        "exec(text.split('def import_d4rl')[0])\n"
        "get_version = lambda: '2.1'\nMjViewer = None\n"
    )
    code = (
        "from tools import d4rl_compat as c; import sys; e = c.D4RLEnv('pen-human-v1')\n"
        "e.reset(seed=0); print(sys.modules['mujoco_py'].__dict__.get('__file__'))\n"
        "print(c.SIMULATOR)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    result = subprocess.run([sys.executable, "-c", code], **options)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    file, name = result.stdout.splitlines()
    assert re.fullmatch(simulator, name)
    real = name.startswith("mujoco_py ")
    assert file == (str(tmp_path / "mujoco_py.py") if real else "None")


@pytest.mark.slow
def test_importing_it_makes_no_folder(tmp_path):
    folders = {"HOME": str(tmp_path / "none"), "D4RL_DATASET_DIR": str(tmp_path / "data")}
    code = (
        "from tools.d4rl_compat import D4RLEnv; import os; D4RLEnv('antmaze-umaze-v2')\n"
        "print(os.environ['D4RL_DATASET_DIR'])"
    )
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": os.environ | folders}
    result = subprocess.run([sys.executable, "-c", code], **options)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'data'}\n"
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("name", [ANTMAZE, ADROIT])
def test_data_is_that_of_d4rls_own_function(d4rl_dir, name):
    import d4rl
    import gym

    data, report = load(name, d4rl_dir)
    raw = gym.make(name)
    raw_data = raw.get_dataset(d4rl_dir / D4RLEnv(name).dataset_file)
    theirs = d4rl.qlearning_dataset(raw, dataset=raw_data)
    assert set(data) == {"observations", "next_observations", "actions", "rewards", "masks"}
    for key in ("observations", "next_observations"):
        assert np.array_equal(data[key], theirs[key])
    limit = 1 - 1e-5
    assert np.array_equal(data["actions"], np.clip(theirs["actions"], -limit, limit))
    # AntMaze: -1 per step until the goal, there 0
    assert np.array_equal(data["rewards"], theirs["rewards"] - (name == ANTMAZE))
    assert np.array_equal(data["masks"], 1 - theirs["terminals"])
    assert 0 < theirs["terminals"].mean() < 0.2
    count = len(theirs["rewards"])
    episodes, transitions = {ANTMAZE: (4, 240), ADROIT: (10, count)}[name]
    assert (report["episodes"], report["transitions"]) == (episodes, transitions)
    assert report["source"] == "official or unknown"
    assert report["simulator"] == d4rl_compat.SIMULATOR


def test_a_dataset_that_is_missing_or_broken(d4rl_dir, tmp_path, monkeypatch):
    def unreachable(url, path):
        Path(path).write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    def cut_off(url, path):
        Path(path).write_bytes(b"half")
        raise http.client.IncompleteRead(b"half")

    data, file = tmp_path / "data", D4RLEnv(ADROIT).dataset_file
    assert file == "pen-human-v1.hdf5"
    args = command(data, tmp_path / "runs", "--eval-episodes", 1, env_id=ADROIT)
    download = "urllib.request.urlretrieve"
    for fail, word in ((unreachable, "no route to host"), (cut_off, "IncompleteRead")):
        monkeypatch.setattr(download, fail)
        refused(drol, args, data, word, f"put {file}")
        assert not [path for path in data.iterdir() if path.suffix != ".lock"]
    monkeypatch.setattr(download, lambda url, path: Path(path).write_bytes(b"broken"))
    refused(drol, args, data, file, "delete")
    whole = (d4rl_dir / file).read_bytes()
    for content in (whole[: len(whole) // 2], whole.replace(b"timeouts", b"timeless")):
        (data / file).write_bytes(content)
        refused(drol, args, data, file, "delete")
    (data / file).unlink()
    monkeypatch.setattr(download, lambda url, path: Path(path).write_bytes(whole))
    assert load(ADROIT, data)[1]["episodes"] == 10
    assert {path.suffix for path in data.iterdir()} == {".hdf5", ".lock"}


@every_program
def test_without_d4rl_the_install_command_is_told(program, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tools.d4rl_compat")
    monkeypatch.delattr(sys.modules["tools"], "d4rl_compat")
    monkeypatch.setitem(sys.modules, "gym", None)  # as where it is not installed
    told = "pip install --no-deps -r requirements-d4rl.txt"
    with pytest.raises(ImportError, match=told):
        program.main(command(tmp_path, tmp_path, env_id=ADROIT))
    assert (ROOT / "requirements-d4rl.txt").exists()


# -------------------------------------------------------------------------------------- the runs


@every_program
@pytest.mark.parametrize("name", [pytest.param(ANTMAZE, marks=pytest.mark.slow), ADROIT])
def test_a_run_and_its_resumption(program, capsys, d4rl_dir, tmp_path, name):
    def train(folder, *flags):
        args = command(d4rl_dir, tmp_path / folder, "--eval-episodes", 2, *flags, env_id=name)
        program.main(args)
        return run_of(tmp_path / folder), capsys.readouterr().out

    whole, out = train("whole", "--steps", 40)
    assert "in mujoco_py's place" in out and "Target Goal" not in out
    train("parts")
    parts, again = train("parts", "--steps", 40)
    assert "resumed at update 20" in again
    assert whole.parts[-3] == name and same_weights(whole, parts)
    assert (whole / "eval.csv").read_bytes() == (parts / "eval.csv").read_bytes()
    rows = read(whole / "eval.csv")
    assert [row["step"] for row in rows] == ["20", "40"]
    normalised = D4RLEnv(name).get_normalized_score
    for row in rows:
        assert float(row["score"]) == pytest.approx(normalised(float(row["return"])) * 100)
        assert name == ADROIT or float(row["length"]) == 700
    assert f"score {float(rows[-1]['score']):.1f}, the mean of 1" in out  # D4RL's is the last
    config = json.loads((whole / "config.json").read_text())
    assert config["data"]["simulator"] == d4rl_compat.SIMULATOR


def test_a_run_goes_on_on_its_own_simulator_only(d4rl_dir, tmp_path, monkeypatch):
    drol.main(command(d4rl_dir, tmp_path, "--eval-episodes", 1, env_id=ADROIT))
    monkeypatch.setattr(d4rl_compat, "SIMULATOR", "mujoco_py 2.1.2.14")
    args = command(d4rl_dir, tmp_path, "--eval-episodes", 1, "--steps", 40, env_id=ADROIT)
    refused(drol, args, run_of(tmp_path), "simulator", "mujoco_py 2.1.2.14", "--overwrite")


@pytest.mark.slow
def test_the_console_shows_nothing_of_d4rls(d4rl_dir, tmp_path):
    args = command(d4rl_dir, tmp_path / "runs", "--eval-episodes", 1, env_id=ANTMAZE)
    environment = os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "100"}
    options = {"capture_output": True, "text": True, "env": environment}
    result = subprocess.run([sys.executable, drol.__file__, *args], **options)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "Target" not in result.stdout and "Warning" not in result.stdout
    assert not list(tmp_path.glob("*.xml"))  # the maze's

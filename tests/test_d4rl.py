"""Tests of D4RL's tasks: the simulator against recordings of the original stack, the data, runs."""

import http.client
import os
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

h5py = pytest.importorskip("h5py")
d4rl_compat = pytest.importorskip("d4rl_compat")
D4RLEnv = d4rl_compat.D4RLEnv
RECORDED = np.load(ROOT / "testdata" / "d4rl_mujoco210.npz")  # of MuJoCo 2.1.0 and mujoco-py
RECORDED_TASKS = sorted({key.split("/")[0] for key in RECORDED.files})


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
def test_importing_it_makes_no_folder(tmp_path):
    folders = {"HOME": str(tmp_path / "none"), "D4RL_DATASET_DIR": str(tmp_path / "data")}
    code = (
        "from d4rl_compat import D4RLEnv; import os; D4RLEnv('antmaze-umaze-v2')\n"
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

    env, data, validation = d4rl_compat.make_env_and_datasets(name, dataset_dir=str(d4rl_dir))
    raw = gym.make(name)
    raw_data = raw.get_dataset(d4rl_dir / env.dataset_file)
    theirs = d4rl.qlearning_dataset(raw, dataset=raw_data)
    count = len(theirs["rewards"])
    assert name == ADROIT or count == 4 * 60
    assert validation is None and env.name == name
    for key in ("observations", "next_observations", "actions"):
        assert np.array_equal(data[key], theirs[key])
    # AntMaze: -1 per step until the goal, there 0
    assert np.array_equal(data["rewards"], theirs["rewards"] - (name == ANTMAZE))
    assert np.array_equal(data["masks"], 1 - theirs["terminals"])
    assert 0 < theirs["terminals"].mean() < 0.2
    assert data["terminals"].sum() == (4 if name == ANTMAZE else 10)
    assert data.keys() == theirs.keys() | {"masks"}
    assert {(len(value), value.dtype.name) for value in data.values()} == {(count, "float32")}
    loaded = drol.load_data(name, str(d4rl_dir), "cpu")
    assert np.array_equal(loaded["observations"], data["observations"])


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value


def test_a_file_that_is_damaged_or_of_another_task(d4rl_dir, tmp_path):
    file = "pen-human-v1.hdf5"
    path = tmp_path / file
    whole = (d4rl_dir / file).read_bytes()
    with h5py.File(d4rl_dir / file) as content:
        arrays = {key: content[key][:] for key in content}

    def says(word):
        with pytest.raises(ValueError, match=word) as caught:
            d4rl_compat.make_env_and_datasets(ADROIT, dataset_dir=tmp_path)
        assert str(path) in str(caught.value)
        refused(drol, command(tmp_path, tmp_path / "runs", env_id=ADROIT), file, tmp_path)

    for content in (b"broken", whole[: len(whole) // 2], whole.replace(b"timeouts", b"timeless")):
        path.write_bytes(content)
        says("is damaged")
    for key, value in arrays.items():
        write(path, **arrays | {key: value[:-1]})
        says("not of pen-human-v1")
    write(path, **arrays | {"observations": arrays["observations"][:, :-1]})
    says("not of pen-human-v1")
    write(path, **{key: value[:0] for key, value in arrays.items()})
    says("0 rewards")


def test_the_data_is_downloaded_where_it_is_missing(d4rl_dir, tmp_path, monkeypatch):
    def unreachable(url, path):
        Path(path).write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    def cut_off(url, path):
        Path(path).write_bytes(b"half")
        raise http.client.IncompleteRead(b"half")

    data, file = tmp_path / "a" / "data", "pen-human-v1.hdf5"
    for fail, word in ((unreachable, "no route to host"), (cut_off, "IncompleteRead")):
        monkeypatch.setattr("urllib.request.urlretrieve", fail)
        with pytest.raises(OSError, match=word):
            d4rl_compat.download_datasets([ADROIT], data)
        assert not list(data.iterdir())
    served = []

    def serve(url, path):
        served.append(url)
        Path(path).write_bytes((d4rl_dir / file).read_bytes())

    monkeypatch.setattr("urllib.request.urlretrieve", serve)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(data))
    for _ in range(2):
        d4rl_compat.download_datasets([ADROIT])
        _, train, _ = d4rl_compat.make_env_and_datasets(ADROIT)
    assert [path.name for path in data.iterdir()] == [file]
    assert len(served) == 1 and served[0].endswith(f"/{file}")
    assert len(drol.load_data(ADROIT, None, "cpu")["rewards"]) == len(train["rewards"])


def test_the_folder_of_the_data(monkeypatch, tmp_path):
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".d4rl" / "datasets"
    monkeypatch.setattr("urllib.request.urlretrieve", lambda url, path: path.write_bytes(b""))
    env = D4RLEnv(ADROIT)
    assert d4rl_compat.download(env, None) == folder / env.dataset_file
    monkeypatch.setenv("D4RL_DATASET_DIR", "~/other")
    assert d4rl_compat.download(env, None) == tmp_path / "other" / env.dataset_file
    assert d4rl_compat.download(env, "~/given") == tmp_path / "given" / env.dataset_file


def test_a_folder_that_only_others_may_write_will_do(d4rl_dir, monkeypatch):
    """Where the file is there, nothing else is made."""

    def deny(*args, **kwargs):
        raise PermissionError("read-only")

    env = D4RLEnv(ADROIT)
    monkeypatch.setattr(Path, "mkdir", deny)
    monkeypatch.setattr("tempfile.mkdtemp", deny)
    assert d4rl_compat.download(env, d4rl_dir) == d4rl_dir / env.dataset_file


@every_program
def test_without_d4rl_the_install_command_is_told(program, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "d4rl_compat")
    monkeypatch.setitem(sys.modules, "gym", None)  # as where it is not installed
    told = "pip install --no-deps -r requirements-d4rl.txt"
    refused(program, command(tmp_path, tmp_path, env_id=ADROIT), told)
    assert (ROOT / "requirements-d4rl.txt").exists()


# -------------------------------------------------------------------------------------- the runs


@every_program
@pytest.mark.parametrize("name", [pytest.param(ANTMAZE, marks=pytest.mark.slow), ADROIT])
def test_a_run_and_its_resumption(program, capsys, d4rl_dir, tmp_path, name):
    def train(folder, *flags):
        program.main(command(d4rl_dir, tmp_path / folder, *flags, env_id=name))
        return run_of(tmp_path / folder), capsys.readouterr().out

    whole, out = train("whole", "--steps", 40)
    assert "Target Goal" not in out
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
    assert f"score {float(rows[-1]['score']):.1f}, the mean of" in out  # of the last one


@pytest.mark.slow
def test_the_console_shows_nothing_of_d4rls(d4rl_dir, tmp_path):
    args = command(d4rl_dir, tmp_path / "runs", env_id=ANTMAZE)
    environment = os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "100"}
    options = {"capture_output": True, "text": True, "env": environment}
    result = subprocess.run([sys.executable, drol.__file__, *args], **options)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "Target" not in result.stdout and "Warning" not in result.stdout
    assert not list(tmp_path.glob("*.xml"))  # the maze's

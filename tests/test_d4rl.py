"""Tests of D4RL's tasks: the simulator against recordings of the original stack, the data, runs."""

import functools
import http.client
import os
import subprocess
import sys
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest

import drol
from tests.helpers import ADROIT, ANTMAZE, ROOT, command, read, refused, run_of

h5py = pytest.importorskip("h5py")
d4rl_compat = pytest.importorskip("d4rl_compat")
d4rl = d4rl_compat.d4rl
D4RLEnv = d4rl_compat.D4RLEnv
RECORDED = np.load(ROOT / "testdata" / "d4rl_mujoco210.npz")  # of MuJoCo 2.1.0 and mujoco-py
RECORDED_TASKS = sorted({key.split("/")[0] for key in RECORDED.files})


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
])  # fmt: skip
def test_time_limits_truncate(name, limit):
    env = D4RLEnv(name)
    env.reset()
    still = np.zeros(env.action_space.shape)
    if name == ADROIT:
        env.inner.step = lambda action: (np.zeros(45), 0.0, False, {})  # a pen never dropped
    ends = [env.step(still)[2:4] for _ in range(limit)]
    assert ends == [(False, False)] * (limit - 1) + [(False, True)]
    env.reset()
    env.env._elapsed_steps = limit - 1
    env.inner.step = lambda action: (np.zeros(env.observation_space.shape), 1.0, True, {})
    assert env.step(still)[1:4] == (1.0, True, False)  # an end at the limit is an end


def test_an_ant_starts_upright_and_ends_at_its_goal():
    env = D4RLEnv(ANTMAZE)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(50)])
    assert np.allclose(np.linalg.norm(starts[:, 3:7], axis=1), 1)  # the orientation has noise
    env.inner.set_xy(np.array(env.inner.target_goal) + [0.3, 0])
    _, reward, terminated, truncated, _ = env.step(np.zeros(8))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert env.get_normalized_score(1.0) == 1


@pytest.mark.parametrize("name", ["antmaze-medium-play-v0", "antmaze-umaze-v1", ANTMAZE, ADROIT])
@pytest.mark.filterwarnings("ignore:.*This environment is deprecated")
def test_a_seed_determines_the_start_and_the_goal(name):
    """In antmaze's v0 and v1, d4rl itself keeps the goal that an environment was made with."""
    starts = []
    for seed in (1, 2, 1):
        env = D4RLEnv(name)
        np.random.random(3)
        start, _ = env.reset(seed=seed)
        starts.append([*start, *getattr(env.inner, "target_goal", ())])
    assert starts[0] == starts[2] != starts[1]


def test_names():
    for name in ("antmaze-tiny-v2", "door-v0", "pen-human-v2", "halfcheetah-medium-v2", ""):
        with pytest.raises(ValueError, match=f"{name} is no AntMaze or Adroit task"):
            d4rl_compat.make_env_and_datasets(name, env_only=True)


environment = functools.cache(D4RLEnv)


def arrays_of(d4rl_dir, name):
    with h5py.File(d4rl_dir / environment(name).dataset_file) as file:
        return {key: file[key][()] for key in file}


def load(name, folder, **arrays):
    """The data of a file of these arrays, or of the file that is there."""
    env = environment(name)
    if arrays:
        with h5py.File(folder / env.dataset_file, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    return d4rl_compat.load_dataset(folder / env.dataset_file, env)


@pytest.mark.parametrize("name", [ANTMAZE, ADROIT])
def test_data_is_that_of_d4rls_own_function(d4rl_dir, name):
    theirs = d4rl.qlearning_dataset(None, dataset=arrays_of(d4rl_dir, name))
    data, count = load(name, d4rl_dir), len(theirs["rewards"])
    for key in ("observations", "next_observations", "actions"):
        assert np.array_equal(data[key], theirs[key])
    # AntMaze: -1 per step until the goal, there 0
    assert np.array_equal(data["rewards"], theirs["rewards"] - (name == ANTMAZE))
    assert np.array_equal(data["masks"], 1 - theirs["terminals"])
    assert 0 < theirs["terminals"].mean() < 0.2
    assert {(len(value), value.dtype.name) for value in data.values()} == {(count, "float32")}
    loaded = drol.load_data(name, str(d4rl_dir))
    assert loaded.keys() == data.keys() and len(loaded["rewards"]) == count


@pytest.mark.parametrize("name", [ANTMAZE, ADROIT])
def test_every_type_of_number_gives_what_float32_gives(d4rl_dir, tmp_path, name):
    arrays = arrays_of(d4rl_dir, name)
    arrays["rewards"] = (arrays["rewards"] > 0).astype(np.float32)
    flat, states = ("rewards", "terminals", "timeouts"), ("observations", "actions")
    expected = load(name, tmp_path, **arrays)
    assert set(np.unique(expected["rewards"])) == ({-1, 0} if name == ANTMAZE else {0, 1})

    def same(changed):
        data = load(name, tmp_path, **arrays | changed)
        return all(np.array_equal(data[key], expected[key]) for key in expected)

    for kind in (bool, np.uint8, np.int8, np.uint64, np.int64, np.float16, np.float64):
        assert same({key: arrays[key].astype(kind) for key in flat}), kind
    assert same({key: arrays[key][:, None] for key in flat})
    assert same({key: arrays[key].astype(np.float64) for key in states})
    halves = {key: arrays[key].astype(np.float16) for key in states}
    expected = load(name, tmp_path, **arrays | {k: x.astype("f4") for k, x in halves.items()})
    assert same(halves)


def test_a_file_that_cannot_be_learned_from(d4rl_dir, tmp_path):
    """Damaged, cut, of another task, not finite, without a step: a sentence, and no warning."""
    file, arrays = "pen-human-v1.hdf5", arrays_of(d4rl_dir, ADROIT)
    path, whole = tmp_path / file, (d4rl_dir / file).read_bytes()

    def says(word, **arrays):
        with pytest.raises(ValueError, match=word) as caught, warnings.catch_warnings():
            warnings.simplefilter("error")
            load(ADROIT, tmp_path, **arrays)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    for content in (b"broken", whole[: len(whole) // 2], whole.replace(b"timeouts", b"timeless")):
        path.write_bytes(content)
        says("is damaged")
    refused(drol, command(tmp_path, tmp_path / "runs", env_id=ADROIT), path)
    words = np.array([b"one"] * len(arrays["rewards"]))
    for key, value in arrays.items():
        says("not of pen-human-v1", **arrays | {key: value[:-1]})
        says("is damaged", **arrays | {key: value + 0j})
        says("is damaged", **arrays | {key: words})
        for bad in (np.nan, np.inf, 1e300):
            holed = value.astype(np.float64)
            holed[7] = bad
            says(f"{key} are not finite", **arrays | {key: holed})
    says("not of pen-human-v1", **arrays | {"observations": arrays["observations"][:, :-1]})
    says("not of pen-human-v1", **{key: value[:0] for key, value in arrays.items()})
    for key in ("terminals", "timeouts"):
        says("every step ends an episode", **arrays | {key: np.ones(len(words), bool)})


def test_the_data_is_downloaded_where_it_is_missing(d4rl_dir, tmp_path, monkeypatch):
    data, file, served = tmp_path / "a" / "data", "pen-human-v1.hdf5", []
    whole = (d4rl_dir / file).read_bytes()

    def serve(url, path, error=None):
        served.append(url)
        Path(path).write_bytes(whole[:99])
        assert not (data / file).exists()  # before it is whole
        if error:
            raise error
        Path(path).write_bytes(whole)

    for error in (urllib.error.URLError("no route"), http.client.IncompleteRead(b"half")):
        fail = functools.partial(serve, error=error)
        monkeypatch.setattr("urllib.request.urlretrieve", fail)
        with pytest.raises(OSError, match="no route|cut off"):
            d4rl_compat.download_datasets([ADROIT], data)
        assert not list(data.iterdir())
    monkeypatch.setattr("urllib.request.urlretrieve", serve)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(data))
    assert len(d4rl_compat.make_env_and_datasets(ADROIT)[1]["rewards"]) > 100
    monkeypatch.setattr("tempfile.mkdtemp", None)  # where it is there, nothing is made
    assert d4rl_compat.download(environment(ADROIT)) == data / file
    assert [path.name for path in data.iterdir()] == [file]
    assert len(served) == 3 and served[-1].endswith(f"/{file}")


def test_the_folder_of_the_data(monkeypatch, tmp_path):
    env = environment(ADROIT)
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlretrieve", lambda url, path: path.write_bytes(b""))
    assert d4rl_compat.download(env) == tmp_path / ".d4rl" / "datasets" / env.dataset_file
    monkeypatch.setenv("D4RL_DATASET_DIR", "~/other")
    assert d4rl_compat.download(env) == tmp_path / "other" / env.dataset_file
    assert d4rl_compat.download(env, "~/given") == tmp_path / "given" / env.dataset_file
    with pytest.raises(OSError, match="no home folder for ~no-such-user"):
        d4rl_compat.download(env, "~no-such-user/data")


def test_without_d4rl_the_install_command_is_told(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "d4rl_compat")
    monkeypatch.setitem(sys.modules, "gym", None)  # as where it is not installed
    told = "pip install --no-deps -r requirements-d4rl.txt"
    refused(drol, command(tmp_path, tmp_path, env_id=ADROIT), told)
    assert (ROOT / "requirements-d4rl.txt").exists()


@pytest.mark.parametrize("name", [ADROIT, pytest.param(ANTMAZE, marks=pytest.mark.slow)])
def test_a_run_leaves_and_says_nothing_of_d4rls(d4rl_dir, tmp_path, name):
    args = command(d4rl_dir, tmp_path / "runs", "--eval-episodes", 4, env_id=name)
    folders = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home"), "COLUMNS": "100"}
    options = {"capture_output": True, "text": True, "env": os.environ | folders}
    result = subprocess.run([sys.executable, drol.__file__, *args], **options)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Target" not in result.stdout and "Warning" not in result.stdout
    assert not list(tmp_path.glob("*.xml")) and not (tmp_path / "home").exists()
    (row,) = read(run_of(tmp_path / "runs") / "eval.csv")
    score = D4RLEnv(name).get_normalized_score(float(row["return"])) * 100
    assert float(row["score"]) == pytest.approx(score) and f"score {score:.1f}" in result.stdout

"""Tests of tools/collect.py: what is played, what is written, what is read, refusals."""

import errno
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np
import ogbench
import pytest
import torch
from ogbench.manipspace.oracles.plan.plan_oracle import PlanOracle

from tests.helpers import refused
from tools import collect

MAZE, FILE = "pointmaze-medium", "pointmaze-medium-navigate-v0.npz"
VALIDATION = FILE.replace(".npz", "-val.npz")


def episode_of(family, length, index=0):
    """An episode as arrays, and the environment in which it was played."""
    recipe = collect.recipe(collect.Args(env_id=family))
    env = collect.worker_env = recipe.make_env()
    env.set_wrapper_attr("_max_episode_steps", length)
    return collect.play_one(recipe.play_episode, 0, index), env.unwrapped


@pytest.mark.parametrize("family", [MAZE, *[
    pytest.param(x, marks=pytest.mark.slow) for x in ("cube-double", "scene", "puzzle-4x6")
]])  # fmt: skip
def test_an_episode_is_of_the_recipe_and_of_the_simulator(monkeypatch, family):
    """OGBench's settings; a step's state gives its observation, its action leads to the next."""
    made, init = [], PlanOracle.__init__
    monkeypatch.setattr(PlanOracle, "__init__", lambda self, **x: made.append(x) or init(self, **x))
    uniform = mock.Mock(wraps=np.random.uniform)
    monkeypatch.setattr(np.random, "uniform", uniform)
    episode, env = episode_of(family, 400)
    assert all((x["noise"], x["noise_smoothing"]) == (0.1, 0.5) for x in made)
    stacked = str(uniform.mock_calls).count("call(0, 0.25)")  # the chance of cubes on cubes
    assert stacked == ("cube" in family)
    assert episode["terminals"].tolist() == [False] * 399 + [True]
    assert 0.9 < abs(episode["actions"]).max() <= 1
    things = slice(None) if family == MAZE else slice(14, None)  # beside the arm
    assert (np.ptp(episode["qpos"][:, things], axis=0) > 0.001).sum() >= 2  # are moved
    if "puzzle" in family:  # its gripper is always closed
        assert (episode["qpos"][50:, 6] > 0.5).all()

    def put(t):
        """Puts the environment in the state of step t. Returns its observation there."""
        state = [episode[x][t] for x in ("qpos", "qvel", "button_states") if x in episode]
        env.set_state(*(x if x.dtype == np.int64 else x.astype(float) for x in state))
        observation = env.get_ob() if family == MAZE else env.compute_observation()
        return np.delete(observation, contact)

    contact = [] if family == MAZE else [18]  # the gripper's force is of the step before
    observations = np.delete(episode["observations"], contact, axis=1)
    of_step, of_next, led, misled = [], [], [], []
    for t in range(0, 390, 10):
        of_step.append(abs(put(t) - observations[t]).max())
        of_next.append(abs(put(t) - observations[t + 1]).max())
        for errors, action in ((led, t), (misled, t + 1)):
            put(t)
            env.step(episode["actions"][action].astype(float))
            errors.append(abs(env.data.qpos - episode["qpos"][t + 1]).max())
    # OGBench's cubes take the gripper's place from a fiftieth of a step before, scaled by 10
    assert max(of_step) < (0.02 if "cube" in family else 1e-5)
    assert np.median(of_next) > 0.02
    assert np.median(led) < 2e-3 and np.median(led) < np.median(misled) / 5


def test_noise_and_goals_of_navigate_are_the_recipes():
    """A step goes to the next cell on the way, with noise of 0.5; a goal that is reached is drawn
    anew, and ends nothing."""
    np.random.seed(0)
    env, noted = collect.make_env(MAZE), []
    maze, step = env.unwrapped, env.unwrapped.step
    where = lambda: noted.append((maze.get_xy().copy(), np.array(maze.cur_goal_xy)))
    maze.step = lambda action: where() or step(action)
    actions = np.array([step["actions"] for step in collect.navigate(MAZE, env, 0)])
    ways = np.array([maze.get_oracle_subgoal(*x)[0] - x[0] for x in noted])
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    noise = abs(actions - ways)[abs(ways) < 0.3]  # there clipping changes little
    # half of a normal distribution lies within 0.674 deviations, eight tenths within 1.282
    assert np.quantile(noise, [0.5, 0.8]) == pytest.approx([0.337, 0.641], rel=0.12)
    places, goals = np.array(noted).transpose(1, 0, 2)
    redrawn = np.flatnonzero(np.diff(goals, axis=0).any(1))
    assert len(redrawn) >= 3
    assert np.linalg.norm(places[redrawn + 1] - goals[redrawn], axis=1).max() < 1.5  # it was there


def test_goals_are_not_in_a_corridor():
    maze = np.ones((5, 5), int)
    free = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    maze[tuple(np.transpose(free))] = 0
    assert collect.free_and_goal_cells(maze) == (free, [(1, 1), (1, 3), (3, 3)])


def test_where_a_scenes_cube_may_lie():
    qpos = np.zeros((3, 20))
    for y, z, healthy in (
        (0.29, 0.02, False), (0.28, 0.02, True), (-0.29, 0.02, True),
        (-0.3, 0.02, False), (-0.3, 0.07, True), (-0.3, 0.09, False),
    ):  # fmt: skip
        qpos[1, 15:17] = y, z
        assert collect.scene_is_healthy(qpos) == healthy


@pytest.mark.parametrize("env_id, dataset", [
    ("cube-triple", "cube-triple-play"), ("puzzle-4x5-play", "puzzle-4x5-play"),
    ("cube-triple-play-singletask-task1-v0", "cube-triple-play"),
    ("scene-play-singletask-v0", "scene-play"), ("pointmaze-giant", "pointmaze-giant-navigate"),
])  # fmt: skip
def test_names(env_id, dataset):
    recipe = collect.recipe(collect.Args(env_id=env_id, episodes=25))
    assert recipe.files == {f"{dataset}-v0.npz": 25, f"{dataset}-v0-val.npz": 2}
    assert "maze" not in env_id or recipe.make_env().spec.max_episode_steps == 2001


def flags(folder, *more):
    return ["--env-id", MAZE, "--episodes", "1", "--jobs", "1", "--data-dir", folder, *more]


@pytest.mark.parametrize("args, words", [
    (["--env-id", "antmaze-large"], "download"), (["--env-id", "cube-single-noisy"], "download"),
    (["--env-id", "pointmaze-medium-stitch-v0"], "download"), (["--env-id", ""], "scene"),
    (["--env-id", "scene", "--report"], "--policy"), (["--env-id", "door-expert-v1"], "--policy"),
    (["--env-id", "scene", "--policy", "a"], "only they"),
    (flags(ogbench.utils.DEFAULT_DATASET_DIR), "no place"), (flags("~nobody-here"), "no place"),
    (flags(f"{__file__}/data"), "cannot be written"),
])  # fmt: skip
def test_mistakes_are_refused(args, words):
    refused(collect, args, words)


def test_the_files_are_official_in_format_and_hold_the_episodes_in_order(data_dir):
    """The files were made in a process of its own; here the episodes are played once more."""
    data, validation = np.load(data_dir / FILE), np.load(data_dir / VALIDATION)
    assert {data[key].shape for key in ("observations", "actions", "qpos", "qvel")} == {(2002, 2)}
    assert set(data) == {"observations", "actions", "terminals", "qpos", "qvel", "source"}
    for i, part in ((2, validation), (0, data)):  # whatever was played before
        episode, _ = episode_of(MAZE, 1001, index=i)
        for key, value in episode.items():
            assert value.dtype == part[key].dtype == (bool if key == "terminals" else np.float32)
            assert np.array_equal(value, part[key][:1001]), key
    assert np.flatnonzero(data["terminals"]).tolist() == [1000, 2001]
    assert str(data["source"]).startswith("collected locally: 2 episodes, seed 0, ogbench 1.2")


@pytest.fixture
def here(monkeypatch):
    """Collecting plays in this process, and a maze's episodes are of 20 steps."""
    maze = collect.make_env(MAZE)
    maze.set_wrapper_attr("_max_episode_steps", 20)

    def play_all(args, recipe):
        collect.worker_env = recipe.make_env()
        count = sum(recipe.files.values())
        return [collect.play_one(recipe.play_episode, args.seed, i) for i in range(count)]

    monkeypatch.setattr(collect, "make_env", lambda family: maze)
    monkeypatch.setattr(collect, "play_all", play_all)


def test_what_is_there_is_kept(here, tmp_path, capsys):
    collect.main(flags(str(tmp_path)))
    before = (tmp_path / FILE).read_bytes()
    collect.main(flags(str(tmp_path)))
    assert "already there" in capsys.readouterr().out
    refused(collect, flags(tmp_path, "--seed", "1"), "is other data", "seed 0")
    (tmp_path / VALIDATION).unlink()  # as a call that was cut off between the two files leaves it
    collect.main(flags(str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 2
    collect.main(flags(str(tmp_path / "1"), "--seed", "1"))
    files = [tmp_path / FILE, tmp_path / VALIDATION, tmp_path / "1" / FILE]
    assert len({np.load(path)["actions"].tobytes() for path in files}) == 3  # different episodes
    np.savez(tmp_path / FILE, observations=np.zeros((3, 2)))
    refused(collect, flags(tmp_path), "official or unknown")
    (tmp_path / FILE).write_bytes(before[:50])
    refused(collect, flags(tmp_path), "damaged")
    assert (tmp_path / FILE).read_bytes() == before[:50]


def test_a_full_disk_leaves_no_part_of_a_file(here, monkeypatch, tmp_path):
    def write(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    refused(collect, flags(tmp_path), "No space left", tmp_path)
    assert not list(tmp_path.iterdir())


class Mjrl:
    """An object as in a DAPG policy's pickle: it has attributes alone."""


def door_policy(outputs=28, nonlinearity=torch.tanh):
    """A policy of random weights as mjrl pickles it, and its arrays by name."""
    torch.manual_seed(0)
    sizes = [(39, 8), (8, 8), (8, outputs)]
    layers = torch.nn.ModuleList([torch.nn.Linear(*size) for size in sizes])
    policy, policy.model = Mjrl(), Mjrl()
    policy.model._modules = OrderedDict(fc_layers=layers)
    policy.model.nonlinearity, policy.d = nonlinearity, np.int64(3)
    policy.log_std = torch.full((outputs,), -2.0, requires_grad=True)
    scales = {"in_shift": torch.randn(39), "in_scale": torch.rand(39) + 0.5,
              "out_shift": torch.arange(outputs) / 9, "out_scale": torch.rand(outputs)}  # fmt: skip
    vars(policy.model).update(scales)
    tensors = [*layers.parameters(), *scales.values(), policy.log_std]
    names = ["w0", "b0", "w1", "b1", "w2", "b2", *scales, "log_std"]
    return policy, {name: x.detach().numpy() for name, x in zip(names, tensors, strict=True)}


DOOR = ["--env-id", "door-expert-v1", "--jobs", "1", "--episodes", "2", "--policy"]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_what_is_no_policy_is_refused_and_none_of_its_code_runs(tmp_path):
    pytest.importorskip("tools.collect_d4rl")
    path, ran, inner = tmp_path / "policy.pickle", tmp_path / "ran", io.BytesIO()
    touch = Call(os.system, f"touch {ran}")
    torch.save(touch, inner, _use_new_zipfile_serialization=False)
    storage = Call(torch.storage._load_from_bytes, inner.getvalue())
    contents = [b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(door_policy()[0])[:-99]]
    contents += [pickle.dumps(door_policy(nonlinearity=torch.relu)[0]), pickle.dumps(touch)]
    contents += [pickle.dumps(door_policy(24)[0]), pickle.dumps(storage)]
    contents += [pickle.dumps(door_policy(nonlinearity=x)[0]) for x in (touch, storage)]
    nan, narrow = np.full(8, np.nan), np.zeros((8, 9))
    for changed in ({"b1": nan}, {"b1": np.array([touch])}, {"w1": narrow}):
        file = io.BytesIO()
        np.savez(file, **door_policy()[1] | changed)
        contents.append(file.getvalue())
    for content in contents:
        path.write_bytes(content)
        refused(collect, [*DOOR, path, "--data-dir", tmp_path / "data"], path, "39 observations")
    refused(collect, [*DOOR, tmp_path, "--data-dir", tmp_path / "data"], tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_door_data_is_d4rls_in_format_and_of_the_policy(here, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    h5py = pytest.importorskip("tools.collect_d4rl").h5py
    pickled, npz = tmp_path / "door.pickle", tmp_path / "door.npz"
    policy, arrays = door_policy()
    pickled.write_bytes(pickle.dumps(policy, protocol=3))  # as DAPG's files
    np.savez(npz, **arrays)
    collect.main([*DOOR, str(pickled), "--data-dir", str(tmp_path)])
    collect.main([*DOOR, "~/door.npz", "--data-dir", "~"])  # the same policy
    assert "already there" in capsys.readouterr().out
    with h5py.File(tmp_path / "door-expert-v1.hdf5") as file:
        assert all(file[key].compression == "gzip" for key in file)
        content = {key: file[key][:] for key in file}
    assert content["observations"].shape == (400, 39) and content["actions"].shape == (400, 28)
    kinds = [content[key].dtype.name for key in sorted(content)]
    assert kinds == ["float32", "float32", "float32", "bool", "bool"]
    assert np.flatnonzero(content["timeouts"]).tolist() == [199, 399]
    assert not content["terminals"].any() and np.abs(content["actions"]).max() == 1
    model, layers = policy.model, policy.model._modules["fc_layers"]
    with torch.no_grad():
        x = (torch.as_tensor(content["observations"]) - model.in_shift) / model.in_scale
        x = layers[2](torch.tanh(layers[1](torch.tanh(layers[0](x)))))
        means = (x * model.out_scale + model.out_shift).numpy()
    noise = (content["actions"] - means)[abs(means) < 0.5]  # there clipping changes little
    assert noise.std() == pytest.approx(np.exp(-2), rel=0.05)  # of log_std -2
    assert abs(noise.mean()) < 0.01


def test_a_policys_report_by_hand():
    collect_d4rl = pytest.importorskip("tools.collect_d4rl")
    episodes = [{"rewards": np.array([x])} for x in (-56.512833, 2880.5693087298737)]  # 0 and 100
    text = "score 50.00 +- 50.00, median 50.00"  # the mean's standard error
    assert collect_d4rl.summary("door-expert-v1", episodes) == text


@pytest.mark.parametrize("drops_at, terminal", [(2, True), (3, False), (9, False)])
def test_a_fall_at_the_time_limit_is_a_timeout_alone(monkeypatch, drops_at, terminal):
    """In D4RL's recipe a step at the limit, here the third, is never terminal."""
    collect_d4rl, count = pytest.importorskip("tools.collect_d4rl"), iter(range(1, 10))
    env = mock.Mock(**{"reset.return_value": (np.zeros(2), {}), "env.spec.max_episode_steps": 3})
    env.step = lambda action: (np.zeros(2), 1.0, next(count) == drops_at, False, {})
    monkeypatch.setattr(collect_d4rl, "mean_action", lambda policy, observation: np.zeros(2))
    steps = collect_d4rl.play_episode({"log_std": np.zeros(2)}, 1, env, 0)
    ends = [(step["terminals"], step["timeouts"]) for step in steps]
    assert ends == [(False, False)] * (min(drops_at, 3) - 1) + [(terminal, not terminal)]

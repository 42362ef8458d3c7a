"""Tests of how a dataset becomes the data of a run: files of benchmarks, arrays of one's own."""

import functools
import shutil
import urllib.error

import gymnasium
import numpy as np
import ogbench
import pytest
import torch

import drol
from tests import fake
from tests.helpers import (
    ANTMAZE,
    command,
    every_program,
    mounted,
    read,
    refused,
    run_of,
    saved,
)

FILE = "pointmaze-medium-navigate-v0.npz"
VALIDATION = "pointmaze-medium-navigate-v0-val.npz"
ENV_NAME = "pointmaze-medium-navigate-singletask-task1-v0"


def load(folder, name=ENV_NAME):
    return drol.load_data(name, str(folder))


@pytest.fixture
def changed(data_dir, tmp_path):
    """changed(change) is a folder with a copy of the data, of whose file change(arrays) changed
    the arrays."""

    def copy(change, file=FILE):
        folder = tmp_path / "data"
        shutil.copytree(data_dir, folder)
        arrays = dict(np.load(folder / file))
        change(arrays)
        np.savez(folder / file, **arrays)
        return folder

    return copy


@pytest.fixture
def no_network(monkeypatch):
    def fail(*args):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", fail)


# -------------------------------------------------------------------------------- what is loaded


def test_transitions_rewards_and_masks(data_dir):
    data = load(data_dir)
    raw = np.load(data_dir / FILE)
    keep = np.flatnonzero(~raw["terminals"])  # the last state of an episode has no next one
    assert set(data) == {"observations", "next_observations", "actions", "rewards", "masks"}
    assert all(value.dtype == torch.float32 and len(value) == 2000 for value in data.values())
    assert torch.equal(data["observations"], torch.from_numpy(raw["observations"][keep]))
    assert torch.equal(data["next_observations"], torch.from_numpy(raw["observations"][keep + 1]))
    limit = np.float32(1 - 1e-5)  # of actions, as in the released code
    assert data["actions"].abs().max() == limit
    assert np.array_equal(data["actions"], raw["actions"][keep].clip(-limit, limit))
    goal = np.array([20.0, 20.0])  # task 1 of pointmaze-medium ends in cell (6, 6)
    success = np.linalg.norm(raw["qpos"][keep] - goal, axis=1) <= 1
    assert torch.equal(data["rewards"], torch.from_numpy(success - 1.0).float())
    assert torch.equal(data["masks"], torch.from_numpy(1.0 - success).float())


def test_the_validation_file_is_not_trained_on(data_dir, changed):
    other = changed(lambda arrays: arrays["actions"].fill(0.5), VALIDATION)
    ours, theirs = load(data_dir), load(other)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_read_only_folder_does_where_all_files_are_there(data_dir, tmp_path):
    with mounted(tmp_path / "disk", "--bind", "-o", "ro", data_dir):
        with pytest.raises(OSError):
            (tmp_path / "disk" / "new").touch()
        assert len(load(tmp_path / "disk")["rewards"]) == 2000


def test_a_folder_below_the_home(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    assert len(load(f"~/{data_dir.name}")["rewards"]) == 2000


def test_batches_are_uniform_over_the_data():
    data = {"rewards": torch.arange(50.0), "masks": torch.arange(50.0)}
    batch = drol.sample_batch(data, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(batch["rewards"], batch["masks"])  # rows stay together
    counts = torch.bincount(batch["rewards"].long(), minlength=50)
    # chi-squared with 49 degrees of freedom is below 85.4 in 99.9 % of cases
    assert ((counts - 400) ** 2 / 400).sum() < 85.4
    one_after_another = batch["rewards"].reshape(2, -1)
    assert abs(np.corrcoef(one_after_another)[0, 1]) < 0.05


def test_actions_of_a_benchmark_outside_the_range_are_clipped_and_said(changed, capsys):
    """0 to 100 in the place of -1 to 1 would otherwise train at the bound without a word."""
    data = load(changed(lambda arrays: arrays["actions"].__imul__(100)))
    assert data["actions"].abs().max() <= 1
    said = capsys.readouterr().out
    assert "100.0%" in said and "-100 to 100" in said


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool, np.float16, np.float64])
def test_any_type_of_number_gives_the_same(tmp_path, kind):
    """In arrays of one's own: 0 and 1 are the same numbers in every type."""
    arrays = fake.made_up_data() | {"rewards": np.arange(100.0) % 2, "masks": np.arange(100.0) % 3}
    arrays["masks"] = np.minimum(arrays["masks"], 1)
    flat = {key: arrays[key].astype(kind) for key in ("rewards", "masks")}
    np.savez(tmp_path / "arrays.npz", **arrays | flat)
    data = load(tmp_path, fake.NAME)
    for key in flat:
        assert data[key].dtype == torch.float32
        assert np.array_equal(data[key], arrays[key].astype(np.float32))


# ---------------------------------------------------------------------------- broken and missing


def set_at(key, value):
    return lambda arrays: arrays[key].__setitem__((7, 0), value)


def cut(arrays):
    """The first 2,500 rows of 3 episodes of 1,001, in the official format."""
    arrays.pop("source")
    for key, array in arrays.items():
        arrays[key] = np.concatenate([array, array[:1001]])[:2500]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


@every_program
@pytest.mark.parametrize("change, words", [
    (lambda arrays: arrays.pop("qpos"), ["qpos"]),
    (set_at("observations", np.nan), ["observations"]),
    (set_at("qpos", np.nan), ["qpos"]),  # of which rewards are made
    (set_at("actions", np.inf), ["actions"]),
    (cut, ["2498", "2497"]),
])  # fmt: skip
def test_a_broken_dataset_is_told_and_left(changed, tmp_path, program, change, words):
    folder = changed(change)
    before = (folder / FILE).read_bytes()
    refused(program, command(folder, tmp_path / "runs"), ENV_NAME, *words)
    assert (folder / FILE).read_bytes() == before
    assert not list((tmp_path / "runs").glob("*/*/*/config.json"))


def test_a_damaged_file_is_told(changed, d4rl_dir, tmp_path):
    folder = changed(lambda arrays: None)
    truncate(folder / FILE)
    refused(drol, command(folder, tmp_path / "runs"), ENV_NAME, "BadZipFile", "docs/data.md")
    (path,) = shutil.copytree(d4rl_dir, tmp_path / "d4rl").glob("Ant_maze*")
    truncate(path)
    args = command(path.parent, tmp_path / "runs", env_id=ANTMAZE)
    refused(drol, args, path.name, "damaged", "docs/data.md")


@pytest.mark.parametrize("env_id", ["pointmaze-medium", ANTMAZE])
def test_a_missing_dataset_without_network(tmp_path, no_network, env_id):
    """The message names the task, the cause, and the page about data."""
    folder = tmp_path / "data"
    args = command(folder, tmp_path / "runs", env_id=env_id)
    refused(drol, args, folder)  # that was given, and is not there
    assert not folder.exists()
    folder.mkdir()
    refused(drol, args, env_id, "no route to host", "docs/data.md")


def test_half_a_dataset_is_a_missing_one(data_dir, tmp_path, no_network):
    shutil.copy(data_dir / FILE, tmp_path)
    refused(drol, command(tmp_path, tmp_path / "runs"), "no route to host")


# ------------------------------------------------------------------------------ one's own task


@pytest.mark.parametrize("name, words", [
    ("no_such_module:Task", ["no_such_module"]),
    ("math:Task", ["make_env_and_datasets"]),
    ("tests.fake:Nothing", ["Nothing"]),
])  # fmt: skip
def test_a_module_that_does_not_fit_is_refused(tmp_path, name, words):
    refused(drol, command(None, tmp_path, "--env-id", name, program=drol), *words)


# ----------------------------------------------------------------------------------- a real task


@pytest.mark.slow
def test_the_main_command_on_data_in_the_official_format(tmp_path, monkeypatch):
    """humanoidmaze-medium with K = 16, from a small dataset of random actions, at full width."""
    env = gymnasium.make("humanoidmaze-medium-v0", terminate_at_goal=False, max_episode_steps=101)
    rng = np.random.default_rng(0)
    steps = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
    for episode in range(3):
        observation, _ = env.reset(seed=episode)
        for step in range(101):
            action = rng.uniform(-1, 1, 21)
            following, _, _, _, info = env.step(action)
            steps["observations"].append(observation)
            steps["actions"].append(action)
            steps["terminals"].append(step == 100)
            steps["qpos"].append(info["prev_qpos"])
            steps["qvel"].append(info["prev_qvel"])
            observation = following
    arrays = {key: np.array(value, np.float32) for key, value in steps.items()}
    arrays["terminals"] = arrays["terminals"].astype(bool)
    arrays["qpos"][:50, :2] = 20.0  # task 1's goal, so that there is something to find
    for suffix in ("", "-val"):
        np.savez_compressed(tmp_path / f"humanoidmaze-medium-navigate-v0{suffix}.npz", **arrays)
    make = functools.partial(ogbench.make_env_and_datasets, max_episode_steps=100)
    monkeypatch.setattr(ogbench, "make_env_and_datasets", make)
    flags = ["--env-id", "humanoidmaze-medium", "--k", "16", "--data-dir", tmp_path]
    flags += ["--run-dir", tmp_path / "runs", "--steps", 4, "--log-interval", 2]
    flags += ["--eval-episodes", 1, "--eval-envs", 1, "--device", "cpu"]
    drol.main(list(map(str, flags)))
    run = run_of(tmp_path / "runs")
    env_name = "humanoidmaze-medium-navigate-singletask-task1-v0"
    assert run == tmp_path / "runs" / env_name / "drol-k16-bc_coef0.3" / "seed0"
    assert tuple(saved(run)["dims"]) == (69, 21, (512, 512, 512, 512))
    (row,) = read(run / "eval.csv")
    assert (float(row["score"]), float(row["return"]), float(row["length"])) == (0, -100, 100)

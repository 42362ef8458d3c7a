"""Tests of how a dataset becomes the data of a run: files of benchmarks, arrays of one's own."""

import shutil
import urllib.error
from unittest import mock

import numpy as np
import pytest
import torch

import drol
from tests import fake
from tests.helpers import ANTMAZE, command, every_program, mounted, refused

MAZE, FILE = "pointmaze-medium", "pointmaze-medium-navigate-v0.npz"
ENV_NAME = "pointmaze-medium-navigate-singletask-v0"


def load(folder, name=ENV_NAME):
    return drol.load_data(name, str(folder))


@pytest.fixture
def changed(data_dir, tmp_path):
    """changed(change) is a folder with a copy of the data, whose arrays change(arrays) changed."""

    def copy(change):
        folder = tmp_path / "data"
        shutil.copytree(data_dir, folder)
        arrays = dict(np.load(folder / FILE))
        change(arrays)
        np.savez(folder / FILE, **arrays)
        return folder

    return copy


# -------------------------------------------------------------------------------- what is loaded


def test_transitions_rewards_and_masks(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    data = load(f"~/{data_dir.name}")
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


def test_a_read_only_folder_does_where_all_files_are_there(data_dir, tmp_path):
    with mounted(tmp_path / "disk", "--bind", "-o", "ro", data_dir):
        with pytest.raises(OSError):
            (tmp_path / "disk" / "new").touch()
        assert len(load(tmp_path / "disk")["rewards"]) == 2000


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
    args = command(folder, tmp_path / "runs", env_id=MAZE, program=program)
    refused(program, args, ENV_NAME, *words)
    assert (folder / FILE).read_bytes() == before
    assert not list((tmp_path / "runs").glob("*/*/*/config.json"))


def test_a_damaged_file_is_told(changed, d4rl_dir, tmp_path):
    folder = changed(lambda arrays: None)
    (path,) = shutil.copytree(d4rl_dir, tmp_path / "d4rl").glob("Ant_maze*")
    for file in (folder / FILE, path):
        file.write_bytes(file.read_bytes()[:-1000])
    args = command(folder, tmp_path / "runs", env_id=MAZE, program=drol)
    refused(drol, args, ENV_NAME, "BadZipFile", "docs/data.md")
    args = command(path.parent, tmp_path / "runs", env_id=ANTMAZE)
    refused(drol, args, path.name, "damaged", "docs/data.md")


@pytest.mark.parametrize("env_id", ["pointmaze-medium", ANTMAZE])
def test_a_missing_dataset_without_network(data_dir, tmp_path, monkeypatch, env_id):
    """The message names the task, the cause, and the page about data. Half a dataset is missing."""
    error, folder = urllib.error.URLError("no route to host"), tmp_path / "data"
    monkeypatch.setattr("urllib.request.urlopen", mock.Mock(side_effect=error))
    args = command(folder, tmp_path / "runs", env_id=env_id, program=drol)
    refused(drol, args, folder)  # that was given, and is not there
    assert not folder.exists()
    folder.mkdir()
    shutil.copy(data_dir / FILE, folder)
    refused(drol, args, env_id, "no route to host", "docs/data.md")

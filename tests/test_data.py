"""Tests of how a dataset becomes the data of a run."""

import functools
import json
import shutil
import urllib.error

import filelock
import gymnasium
import numpy as np
import ogbench
import pytest
import torch

import drol
from tests.helpers import command, read, refused, run_of

FILE = "pointmaze-medium-navigate-v0.npz"
VALIDATION = "pointmaze-medium-navigate-v0-val.npz"


def load(folder, task=1):
    return drol.load_data(drol.find_task("pointmaze-medium", task)[0], folder, "cpu")


@pytest.fixture
def changed(data_dir, tmp_path):
    """changed(name, change) is a folder with a copy of the data, of whose file the arrays were
    changed by change(arrays)."""

    def copy(name, change, file=FILE):
        folder = tmp_path / name
        shutil.copytree(data_dir, folder)
        arrays = dict(np.load(folder / file))
        change(arrays)
        np.savez(folder / file, **arrays)
        return folder

    return copy


def no_network(url):
    raise urllib.error.URLError("no route to host")


# ----------------------------------------------------------------------------- what is loaded


def test_transitions_rewards_and_masks(data_dir):
    data, report = load(data_dir)
    raw = np.load(data_dir / FILE)
    keep = np.flatnonzero(~raw["terminals"])  # the last state of an episode has no next one
    assert set(data) == {"observations", "next_observations", "actions", "rewards", "masks"}
    assert all(value.dtype == torch.float32 for value in data.values())
    assert torch.equal(data["observations"], torch.from_numpy(raw["observations"][keep]))
    assert torch.equal(data["next_observations"], torch.from_numpy(raw["observations"][keep + 1]))
    limit = np.float32(1 - 1e-5)  # of actions, as in the released code
    assert data["actions"].abs().max() == limit
    assert np.array_equal(data["actions"], raw["actions"][keep].clip(-limit, limit))
    goal = np.array([20.0, 20.0])  # task 1 of pointmaze-medium ends in cell (6, 6)
    success = np.linalg.norm(raw["qpos"][keep] - goal, axis=1) <= 1
    assert torch.equal(data["rewards"], torch.from_numpy(success - 1.0).float())
    assert torch.equal(data["masks"], torch.from_numpy(1.0 - success).float())
    assert (report["episodes"], report["transitions"]) == (2, 2000)
    assert report["source"].startswith("collected locally")
    assert report["simulator"] == f"mujoco {drol.version('mujoco')}"


def test_the_validation_file_is_not_trained_on(data_dir, changed):
    other = changed("other", lambda arrays: arrays["actions"].fill(0.5), VALIDATION)
    (ours, facts), (theirs, same_facts) = load(data_dir), load(other)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert facts["fingerprint"] == same_facts["fingerprint"]


def test_the_fingerprint_tells_data_apart(data_dir, changed):
    def nudge(key):
        def change(arrays):
            arrays[key][7, 0] += 0.25 if arrays[key][7, 0] < 0.5 else -0.25

        return change

    fingerprints = [load(data_dir)[1]["fingerprint"], load(data_dir, 2)[1]["fingerprint"]]
    for key in ("observations", "actions"):
        fingerprints.append(load(changed(key, nudge(key)))[1]["fingerprint"])
    at_the_goal = changed("rewards", lambda arrays: arrays["qpos"][:5].fill(20))
    fingerprints.append(load(at_the_goal)[1]["fingerprint"])
    assert len(set(fingerprints)) == 5
    assert load(data_dir)[1]["fingerprint"] == fingerprints[0]


def test_a_file_without_a_mark_is_official_or_unknown(changed):
    folder = changed("official", lambda arrays: arrays.pop("source"))
    assert load(folder)[1]["source"] == "official or unknown"


# ------------------------------------------------------------------------------------ batches


def test_batches_are_uniform_over_the_data():
    data = {"rewards": torch.arange(50.0), "masks": torch.arange(50.0)}
    batch = drol.sample_batch(data, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(batch["rewards"], batch["masks"])  # rows stay together
    counts = torch.bincount(batch["rewards"].long(), minlength=50)
    # chi-squared with 49 degrees of freedom is below 85.4 in 99.9 % of cases
    assert ((counts - 400) ** 2 / 400).sum() < 85.4
    one_after_another = batch["rewards"].reshape(2, -1)
    assert abs(np.corrcoef(one_after_another)[0, 1]) < 0.05


# ------------------------------------------------------------------------- broken and missing


def shorten(folder):
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("kind, change, word", [
    ("truncated", lambda arrays: None, "zip"),
    ("missing", lambda arrays: arrays.pop("qpos"), "qpos"),
    ("not finite", lambda arrays: arrays["observations"].__setitem__((7, 0), np.nan),
     "observations"),
    ("infinite", lambda arrays: arrays["actions"].__setitem__((7, 0), np.inf), "actions"),
    ("of another task", lambda arrays: arrays.update(observations=np.zeros((2002, 4))),
     "observations"),
    ("of another robot", lambda arrays: arrays.update(actions=np.zeros((2002, 8))), "actions"),
])  # fmt: skip
def test_a_broken_dataset_is_told_and_left(changed, tmp_path, kind, change, word):
    folder = changed("data", change)
    if kind == "truncated":
        shorten(folder)
    before = (folder / FILE).read_bytes()
    refused(drol, command(folder, tmp_path / "runs"), folder, FILE, word, "delete")
    assert (folder / FILE).read_bytes() == before
    assert not list((tmp_path / "runs").glob("*/*/*/config.json"))


def test_a_missing_dataset_without_network(tmp_path, monkeypatch):
    """The message names the files, the folder, the mirror, and the page about data."""
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    refused(drol, command(tmp_path / "data", tmp_path / "runs"), tmp_path / "data", FILE,
            VALIDATION, "huggingface.co/datasets/zhouzypaul/ogbench_datasets",
            "docs/data.md", "no route")  # fmt: skip


def test_half_a_dataset_is_a_missing_one(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    shutil.copy(data_dir / FILE, tmp_path)
    refused(drol, command(tmp_path, tmp_path / "runs"), VALIDATION, "no route")


def test_runs_that_start_together_download_once(data_dir, tmp_path, monkeypatch):
    """The download of a missing dataset happens under a lock that other runs wait for."""

    def download(names, folder):
        assert names == [FILE.removesuffix(".npz")]
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(f"{folder}/{names[0]}.lock").acquire(timeout=0)
        for path in data_dir.glob("*.npz"):
            shutil.copy(path, folder)

    monkeypatch.setattr(ogbench, "download_datasets", download)
    assert load(tmp_path / "new")[1]["transitions"] == 2000
    monkeypatch.setattr(ogbench, "download_datasets", None)  # and none where the files are there
    load(tmp_path / "new")


# ------------------------------------------------------------------------------ a real task


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
    env.close()
    arrays = {key: np.array(value, np.float32) for key, value in steps.items()}
    arrays["terminals"] = arrays["terminals"].astype(bool)
    arrays["qpos"][:50, :2] = 20.0  # task 1's goal, so that there is something to find
    for suffix in ("", "-val"):
        np.savez_compressed(tmp_path / f"humanoidmaze-medium-navigate-v0{suffix}.npz", **arrays)
    make = functools.partial(ogbench.make_env_and_datasets, max_episode_steps=100)
    monkeypatch.setattr(ogbench, "make_env_and_datasets", make)
    flags = ["--env-id", "humanoidmaze-medium", "--k", "16", "--data-dir", tmp_path]
    flags += ["--run-dir", tmp_path / "runs", "--steps", 4, "--log-interval", 2]
    flags += ["--eval-episodes", 1, "--device", "cpu", "--compile", "off"]
    drol.main(list(map(str, flags)))
    run = run_of(tmp_path / "runs")
    assert run == tmp_path / "runs" / "humanoidmaze-medium-navigate-task1" / "drol-k16" / "seed0"
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["source"] == "official or unknown"
    assert (config["data"]["transitions"], config["data"]["episodes"]) == (300, 3)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert tuple(saved["dims"]) == (69, 21, (512, 512, 512, 512))
    (row,) = read(run / "eval.csv")
    assert (float(row["score"]), float(row["return"]), float(row["length"])) == (0, -100, 100)

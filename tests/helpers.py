"""What several test files use: commands, readers of records, made-up batches and datasets."""

import csv
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import drol
import fql
from tests import fake

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"drol": drol, "fql": fql}
every_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
ANTMAZE, ADROIT = "antmaze-umaze-v2", "pen-human-v1"
SMALL = [
    "--steps", "20",
    "--eval-interval", "20",
    "--hidden-dims", "16", "16",
    "--batch-size", "32",
    "--log-interval", "10",
    "--eval-envs", "2",
    "--eval-episodes", "2",
    "--device", "cpu",
]  # fmt: skip


def command(data_dir, run_dir, *flags, env_id=fake.NAME, program=None):
    """The flags of a run of 20 updates. Flags that follow win. A program's weight is given, as
    nothing is published for the fake environment."""
    if program is not None:
        flags = [{"drol": "--bc-coef", "fql": "--alpha"}[program.ALGORITHM], 3, *flags]
    folders = ["--run-dir", run_dir] + ["--data-dir", data_dir] * (data_dir is not None)
    return list(map(str, ["--env-id", env_id, *folders, *SMALL, *flags]))


def run_of(run_dir):
    """The one run folder below run_dir."""
    (config,) = Path(run_dir).glob("*/*/*/config.json")
    return config.parent


def read(path):
    """The rows of a CSV file, as dicts of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def steps_of(run, name="eval"):
    return [int(row["step"]) for row in read(run / f"{name}.csv")]


def saved(run):
    """What a run folder's checkpoint holds."""
    return torch.load(run / "checkpoint.pt", weights_only=True)


def same_weights(a, b):
    """Whether the checkpoints of two run folders hold the same networks, bit for bit."""
    a, b = saved(a)["networks"], saved(b)["networks"]
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def refused(program, args, *words):
    """The program must refuse args, in one sentence that holds all the words. Returns it."""
    with pytest.raises(SystemExit) as caught:
        program.main(list(map(str, args)))
    message = str(caught.value)
    assert message.startswith("error: ") and "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


def wait_for(condition, seconds=60):
    """What condition() returns, once that is true."""
    deadline = time.time() + seconds
    while not (result := condition()):
        assert time.time() < deadline
        time.sleep(0.02)
    return result


def random_batch(batch_size, observation_dim, action_dim, seed=0):
    """A batch of made-up transitions, one in ten of them terminal."""
    g = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=g) * 2 - 1
    return {
        "observations": uniform(batch_size, observation_dim),
        "actions": uniform(batch_size, action_dim),
        "next_observations": uniform(batch_size, observation_dim),
        "rewards": uniform(batch_size),
        "masks": (uniform(batch_size) > -0.8).float(),
    }


@contextmanager
def mounted(folder, *options):
    """A file system on a new folder, with mount's options. Skips the test where that is refused."""
    folder.mkdir()
    if subprocess.run(["mount", *options, folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def write_d4rl_file(name, folder, episodes, length):
    """A dataset in D4RL's format: random actions in the task's environment. Of AntMaze, every
    tenth step is said to be at the goal."""
    import h5py

    from d4rl_compat import D4RLEnv

    env, rng = D4RLEnv(name), np.random.default_rng(0)
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    steps = {key: [] for key in keys}
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for step in range(length):
            action = rng.uniform(-1, 1, env.action_space.shape)
            following, reward, terminated, _, _ = env.step(action)
            at_goal = name == ANTMAZE and step % 10 == 9
            steps["observations"].append(observation)
            steps["actions"].append(action)
            steps["rewards"].append(reward + at_goal)
            steps["terminals"].append(terminated or at_goal)
            steps["timeouts"].append(step == length - 1 and not terminated)
            observation = following
            if terminated:
                break
    with h5py.File(folder / env.dataset_file, "w") as file:
        for key, values in steps.items():
            kind = bool if key in ("terminals", "timeouts") else np.float32
            file[key] = np.array(values, kind)

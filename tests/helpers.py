"""What several test files use: commands, readers of records, made-up batches and datasets."""

import csv
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import drol
import fql

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
]


def command(data_dir, run_dir, *flags, env_id="pointmaze-medium"):
    """The flags of a run of 20 updates. Flags that follow win."""
    folders = ["--data-dir", data_dir, "--run-dir", run_dir]
    return list(map(str, ["--env-id", env_id, *folders, *SMALL, *flags]))


def run_of(run_dir):
    """The one run folder below run_dir."""
    (config,) = Path(run_dir).glob("*/*/*/config.json")
    return config.parent


def read(path):
    """The rows of a CSV file, as dicts of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(run):
    """{name: tensor} of a run folder's checkpoint."""
    return torch.load(run / "checkpoint.pt", weights_only=True)["networks"]


def same_weights(a, b):
    """Whether the checkpoints of two run folders hold the same networks, bit for bit."""
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def refused(program, args, *words):
    """The program must refuse args, in one sentence that holds all the words."""
    with pytest.raises(SystemExit) as caught:
        program.main(args)
    message = str(caught.value)
    assert message.startswith("error: ") and "\n" not in message
    for word in words:
        assert str(word) in message, message


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


def made_up_parameters(rng, in_dim, hidden_dims, out_dim, critic):
    """A network's parameters as the recordings name them. Critics have a leading axis of two."""
    parameters, lead = {}, (2,) if critic else ()
    widths = (in_dim, *hidden_dims, out_dim)
    uniform = lambda low, high, *shape: rng.uniform(low, high, lead + shape).astype(np.float32)
    for j, (m, n) in enumerate(zip(widths, widths[1:], strict=False)):
        bound = (6 / (m + n)) ** 0.5
        parameters[f"Dense_{j}/kernel"] = uniform(-bound, bound, m, n)
        parameters[f"Dense_{j}/bias"] = uniform(-0.05, 0.05, n)
        if critic and n > 1:
            parameters[f"LayerNorm_{j}/scale"] = uniform(0.9, 1.1, n)
            parameters[f"LayerNorm_{j}/bias"] = uniform(-0.05, 0.05, n)
    return parameters


def made_up_recording(program, batch_size, k, dims, seed, updates):
    """What the released code was given for testdata/parity/published_size, drawn in this order:
    parameters, then batch and noise of every update."""
    rng, record = np.random.RandomState(seed), {}
    B, (S, A, hidden_dims) = batch_size, dims
    sizes = {"actor": (S + A, A), "critic": (S + A, 1), "target_critic": (S + A, 1)}
    if program is fql:
        sizes["flow"] = (S + A + 1, A)
    for name, (in_dim, out_dim) in sizes.items():
        drawn = made_up_parameters(rng, in_dim, hidden_dims, out_dim, "critic" in name)
        record |= {f"init/{name}/{key}": value for key, value in drawn.items()}

    def ball(*shape):
        g, u = rng.normal(size=shape), rng.uniform(size=(*shape[:-1], 1))
        return A**0.5 * u ** (1 / A) * g / np.linalg.norm(g, axis=-1, keepdims=True)

    for step in range(updates):
        drawn = {
            "batch/observations": rng.normal(size=(B, S)),
            "batch/actions": rng.uniform(-0.99, 0.99, (B, A)),
            "batch/next_observations": rng.normal(size=(B, S)),
            "batch/rewards": -rng.randint(0, 2, B),
            "batch/masks": rng.uniform(size=B) > 0.02,
        }
        if program is drol:
            drawn |= {"noise/next_z": ball(B, A), "noise/candidate_z": ball(B, k, A)}
        else:
            drawn |= {"noise/next_z": rng.normal(size=(B, A)), "noise/x_0": rng.normal(size=(B, A))}
            drawn |= {"noise/t": rng.uniform(size=(B, 1)), "noise/z": rng.normal(size=(B, A))}
        record |= {f"step{step}/{key}": x.astype(np.float32) for key, x in drawn.items()}
    return record


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

    from tools.d4rl_compat import D4RLEnv

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

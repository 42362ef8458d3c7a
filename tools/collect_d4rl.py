"""Plays the DAPG policies that D4RL recorded, by D4RL's recipe (its hand_dapg_policies.py).

The command is tools/collect.py. A policy is a tanh network of two hidden layers with scaled inputs
and outputs and Gaussian noise. No code in a policy's file is run.
"""

import hashlib
import io
import pickle
import sys
import zipfile
from functools import partial
from importlib.metadata import version

import h5py
import numpy as np

from d4rl_compat import D4RLEnv as make_env
from d4rl_compat import default_dataset_dir

CACHE = default_dataset_dir()
EPISODES = 5000  # of each of D4RL's expert datasets
LAYERS = ["w0", "b0", "w1", "b1", "w2", "b2"]
SCALES = ["in_shift", "in_scale", "out_shift", "out_scale"]
WEIGHTS = [*LAYERS, *SCALES, "log_std"]


def plan(args):
    """The file's name and number of episodes, what plays an episode, and the data's source."""
    policy = load_policy(args)
    count = args.episodes or EPISODES
    size = "" if count == EPISODES else f" (official size: {EPISODES})"
    digest = hashlib.sha256(b"".join(array.tobytes() for array in policy.values()))
    source = (
        f"collected locally: {count} episodes{size}, seed {args.seed}, DAPG policy "
        f"{digest.hexdigest()[:8]}, d4rl {version('d4rl')}, mujoco {version('mujoco')}"
    )
    return {make_env(args.env_id).dataset_file: count}, partial(play_episode, policy, 1), source


# -------------------- policies
class Inert:
    """Stands for whatever a pickle names: takes attributes and has no code of its own."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_pickle(path):
    """The arrays of a DAPG policy's pickle, by the names in WEIGHTS."""
    import torch  # large, and the workers do without

    # A pickle can name any function to be called: of them all only these are called. Those of
    # torch are among the ones that it allows itself with weights_only.
    known = {
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
        "torch.storage._load_from_bytes": lambda content: torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        ),
        "builtins.getattr": lambda owner, name: name,  # a function of torch's: its name suffices
        "collections.OrderedDict": dict,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return known.get(f"{module}.{name}", Inert)

    with open(path, "rb") as file:
        policy = Unpickler(file).load()
    network = policy.model
    if network.nonlinearity != "tanh":
        raise ValueError(f"its nonlinearity is {network.nonlinearity}, not tanh")
    layers = network._modules["fc_layers"]._modules.values()
    tensors = [tensor for layer in layers for tensor in layer._parameters.values()]
    tensors += [getattr(network, name) for name in SCALES] + [policy.log_std]
    return {name: x.detach().numpy() for name, x in zip(WEIGHTS, tensors, strict=True)}


def load_policy(args):
    """The weights of the policy in --policy, as float32, by the names in WEIGHTS."""
    env = make_env(args.env_id)
    observations, actions = env.observation_space.shape, env.action_space.shape
    try:
        arrays = (np.load if zipfile.is_zipfile(args.policy) else read_pickle)(args.policy)
        policy = {name: np.asarray(arrays[name], dtype=np.float32) for name in WEIGHTS}
        shape = mean_action(policy, np.zeros(observations)).shape
        if not shape == policy["log_std"].shape == actions:
            raise ValueError(f"actions of shape {shape}")
        if not all(np.isfinite(array).all() for array in policy.values()):
            raise ValueError("NaN or infinity")
    except Exception as error:  # whatever another file makes its readers raise
        sys.exit(
            f"error: --policy {args.policy} is missing, damaged or not of {args.env_id}, which has "
            f"{observations[0]} observations and {actions[0]} actions: {error!r:.200}"
        )
    return policy


def mean_action(policy, observation):
    """The policy's action (A,) for an observation (O,), before noise."""
    w = policy
    x = (observation.astype(np.float32) - w["in_shift"]) / (w["in_scale"] + np.float32(1e-8))
    x = np.tanh(w["w0"] @ x + w["b0"])
    x = np.tanh(w["w1"] @ x + w["b1"])
    x = w["w2"] @ x + w["b2"]
    return x * w["out_scale"] + w["out_shift"]


# -------------------- episodes
def play_episode(policy, noise, env, seed):
    """One episode: a dict of lists of T steps. noise: 1, or 0 for mean actions.

    It ends at the time limit, which is no terminal state, or where the environment says so."""
    generator = np.random.default_rng(seed)
    std = noise * np.exp(policy["log_std"].astype(np.float64))
    limit = env.env.spec.max_episode_steps
    steps = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    observation, _ = env.reset(seed=seed)
    done = False
    while not done:
        action = mean_action(policy, observation) + std * generator.standard_normal(len(std))
        action = np.clip(action, -1, 1)
        next_observation, reward, terminated, _, _ = env.step(action)
        timeout = len(steps["rewards"]) + 1 == limit
        done = terminated or timeout
        steps["observations"].append(observation)
        steps["actions"].append(action)
        steps["rewards"].append(reward)
        steps["terminals"].append(terminated and not timeout)
        steps["timeouts"].append(timeout)
        observation = next_observation
    return steps


def summary(env_id, episodes):
    """D4RL's score of the episodes: 0 is a random policy's return, 100 the reference expert's."""
    score = make_env(env_id).get_normalized_score
    scores = 100 * np.array([score(x["rewards"].sum(dtype=np.float64)) for x in episodes])
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
    return (
        f"normalised return {scores.mean():.2f}, standard error {error:.2f}, "
        f"median {np.median(scores):.2f}"
    )


def write(file, arrays, source):
    with h5py.File(file, "w") as content:
        for key, array in arrays.items():
            content.create_dataset(key, data=array, compression="gzip")
        content.attrs["source"] = source


def read_source(path):
    """Where a dataset file says that it came from."""
    with h5py.File(path) as file:
        return str(file.attrs.get("source", "official or unknown"))

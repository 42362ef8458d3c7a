"""Plays the DAPG policies that D4RL recorded, by D4RL's recipe (its hand_dapg_policies.py).

The command is tools/collect.py. No code in a policy's file is run.
"""

import hashlib
import io
import pickle
import sys
import zipfile
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import h5py
import numpy as np
import torch

from d4rl_compat import D4RLEnv, default_dataset_dir

SCALES = ["in_shift", "in_scale", "out_shift", "out_scale"]
WEIGHTS = ["w0", "b0", "w1", "b1", "w2", "b2", *SCALES, "log_std"]


def recipe(args, noise=1):
    """What collect needs to make an expert dataset. noise: 1, or 0 for mean actions."""
    policy = load_policy(args)
    count = args.episodes or 5000
    digest = hashlib.sha256(b"".join(array.tobytes() for array in policy.values())).hexdigest()
    return SimpleNamespace(
        files={D4RLEnv(args.env_id).dataset_file: count},
        source=f"collected locally: {count} episodes, seed {args.seed}, DAPG policy "
        f"{digest[:8]}, d4rl {version('d4rl')}, mujoco {version('mujoco')}",
        official=default_dataset_dir(),
        make_env=partial(D4RLEnv, args.env_id),
        play_episode=partial(play_episode, policy, noise),
        read=h5py.File,
        save=save,
    )


class Inert:
    """Stands for whatever a pickle names: takes attributes and has no code of its own."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_pickle(path):
    """The arrays of a DAPG policy's pickle, by the names in WEIGHTS."""
    # A pickle can name any function to be called: of them all only these are called. Those of
    # torch are among the ones that it allows itself with weights_only.
    load = partial(torch.load, map_location="cpu", weights_only=True)
    known = {
        "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
        "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
        "torch.storage._load_from_bytes": lambda content: load(io.BytesIO(content)),
        "builtins.getattr": lambda owner, name: name,  # a function of torch's: its name suffices
        "collections.OrderedDict": dict,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return known.get(f"{module}.{name}", Inert)

    policy = Unpickler(io.BytesIO(path.read_bytes())).load()
    network = policy.model
    if network.nonlinearity != "tanh":
        raise ValueError(f"its nonlinearity is {network.nonlinearity}, not tanh")
    layers = network._modules["fc_layers"]._modules.values()
    tensors = [tensor for layer in layers for tensor in layer._parameters.values()]
    tensors += [getattr(network, name) for name in SCALES] + [policy.log_std]
    return {name: x.detach().numpy() for name, x in zip(WEIGHTS, tensors, strict=True)}


def load_policy(args):
    """The weights of the policy in --policy, as float32, by the names in WEIGHTS."""
    env = D4RLEnv(args.env_id)
    observations, actions = env.observation_space.shape, env.action_space.shape
    try:
        path = args.policy.expanduser()
        arrays = (np.load if zipfile.is_zipfile(path) else read_pickle)(path)
        policy = {name: np.asarray(arrays[name], dtype=np.float32) for name in WEIGHTS}
        shape = mean_action(policy, np.zeros(observations)).shape
        finite = all(np.isfinite(array).all() for array in policy.values())
        if not (finite and shape == policy["log_std"].shape == actions):
            raise ValueError(f"finite: {finite}, actions of shape {shape}")
    except Exception as error:  # whatever another file makes its readers raise
        sys.exit(
            f"error: --policy {args.policy} is missing, damaged or not of {args.env_id}, of "
            f"{observations[0]} observations and {actions[0]} actions: {error!r:.200}"
        )
    return policy


def mean_action(w, observation):
    """A policy's action (A,) for an observation (O,), before noise. w: its weights."""
    x = (observation.astype(np.float32) - w["in_shift"]) / (w["in_scale"] + np.float32(1e-8))
    x = np.tanh(w["w0"] @ x + w["b0"])
    x = np.tanh(w["w1"] @ x + w["b1"])
    x = w["w2"] @ x + w["b2"]
    return x * w["out_scale"] + w["out_shift"]


def play_episode(policy, noise, env, seed):
    """One episode, as a list of steps. It ends at the time limit, which is no terminal state, or
    where the environment says so."""
    generator = np.random.default_rng(seed)
    std = noise * np.exp(policy["log_std"].astype(np.float64))
    observation, _ = env.reset(seed=seed)
    steps, done = [], False
    while not done:
        action = mean_action(policy, observation) + std * generator.standard_normal(len(std))
        step = {"observations": observation, "actions": np.clip(action, -1, 1)}
        observation, step["rewards"], terminated, _, _ = env.step(step["actions"])
        step["timeouts"] = len(steps) + 1 == env.env.spec.max_episode_steps
        step["terminals"] = terminated and not step["timeouts"]
        done = terminated or step["timeouts"]
        steps.append(step)
    return steps


def summary(env_id, episodes):
    """D4RL's score of episodes and its standard error: random play has 0, the reference 100."""
    score = D4RLEnv(env_id).get_normalized_score
    scores = 100 * np.array([score(x["rewards"].sum(dtype=np.float64)) for x in episodes])
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
    return f"score {scores.mean():.2f} +- {error:.2f}, median {np.median(scores):.2f}"


def save(file, source, **arrays):
    with h5py.File(file, "w") as content:
        content.attrs["source"] = source
        for key, array in arrays.items():
            content.create_dataset(key, data=array, compression="gzip")

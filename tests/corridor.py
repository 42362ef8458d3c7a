"""A tiny environment whose outcome is known, and runs in it: no simulator, no other process."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import ogbench
import torch

import drol

NAME = "cube-single-play-singletask-task2-v0"  # under which drol.make_env finds it


class Corridor(gymnasium.Env):
    """An episode of 3 to 7 steps, drawn from its seed, as is whether it ends in success. A step's
    reward is the first action less 1. Observations (2,): the seed's number, then the step.

    played: everything that happened, as (seed, actions (T, 2)) of each finished episode.
    seeds: what it was reset with, None by a vector of environments that goes on by itself."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    d4rl = False  # D4RL's environments report no success, but normalise returns

    def __init__(self):
        self.played, self.seeds = [], []
        self.model = SimpleNamespace(light_castshadow=np.ones(1, bool))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.seed = int(self.np_random.integers(1000)) if seed is None else seed
        self.t, self.actions, self.total = 0, [], 0.0
        self.length, self.success = outcome(self.seed)
        return self.observation(), {"start": True}

    def observation(self):
        return np.array([self.seed % 1000 / 1000, self.t / 10])

    def step(self, action):
        assert self.t < self.length, "stepped beyond its end"
        self.t += 1
        self.actions.append(np.array(action))
        over = self.t == self.length
        if over:
            self.played.append((self.seed, np.array(self.actions)))
        reward = float(action[0]) - 1
        self.total += reward
        info = {"success": float(over and self.success)}
        if self.d4rl:
            info = {"normalized_score": (self.total + 10) / 20}
        terminated = over and self.success
        return self.observation(), reward, terminated, over and not terminated, info

    def render(self):
        """An image that says which step it is of."""
        return np.full((16, 16, 3), 20 * self.t, np.uint8)


def outcome(seed):
    """Length and success of the episode of a seed."""
    rng = np.random.default_rng(seed)
    return int(rng.integers(3, 8)), bool(rng.random() < 0.5)


class InThisProcess(gymnasium.vector.SyncVectorEnv):
    """In place of AsyncVectorEnv."""

    processes = ()


def install(monkeypatch):
    """Makes ogbench make corridors with made-up data, and environments step in this process.
    Returns a list to which every corridor that is made is added."""
    made = []

    def make(name, env_only=False, **options):
        made.append(Corridor())
        if env_only:
            return made[-1]
        data = {key: value.numpy() for key, value in made_up_data().items()}
        return made[-1], data | {"terminals": data["masks"]}, None

    monkeypatch.setattr(ogbench, "make_env_and_datasets", make)
    monkeypatch.setattr(gymnasium.vector, "AsyncVectorEnv", InThisProcess)
    return made


def made_up_data(size=100):
    """Random transitions of two dimensions."""
    g = torch.Generator().manual_seed(0)
    uniform = lambda *shape: torch.rand(*shape, generator=g) * 2 - 1
    return {
        "observations": uniform(size, 2),
        "actions": uniform(size, 2),
        "next_observations": uniform(size, 2),
        "rewards": uniform(size),
        "masks": (uniform(size) > -0.8).float(),
    }


def train(folder, program=drol, **settings):
    """Trains for some updates and returns the final networks, {name: tensor}."""
    small = {"hidden_dims": (16, 16), "batch_size": 32, "steps": 4, "eval_episodes": 2,
             "eval_envs": 2, "device": "cpu"}  # fmt: skip
    args = program.Args(env_id="cube-single", **(small | settings))
    program.resolve(args)
    folder.mkdir(parents=True, exist_ok=True)
    run = program.Run(args, NAME, folder, (2, 2, args.hidden_dims))
    program.train(run, made_up_data(), program.make_envs(NAME, args.eval_envs))
    return torch.load(folder / "checkpoint.pt", weights_only=True)["networks"]

"""An environment whose outcome is known. The fixture `corridors` has it step in this process."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np

NAME = "tests.fake:Corridor-singletask"
MADE = []  # every environment that was made in this process; the fixture `corridors` empties it


class Corridor(gymnasium.Env):
    """An episode of 3 to 7 steps, drawn from its seed, as is whether it ends in success. A step's
    reward is the first action less 1. Observations (2,): the seed's number, then the step.

    played: everything that happened, as (seed, actions (T, 2)) of each finished episode.
    seeds: what it was reset with, None by a vector of environments that goes on by itself."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    scores = "success"  # or normalized_score, as D4RL's environments have, or nothing

    def __init__(self):
        self.played, self.seeds = [], []
        self.model = SimpleNamespace(light_castshadow=np.ones(1, bool))  # to be filmed
        MADE.append(self)

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
        score = {"success": over and self.success, "normalized_score": (self.total + 10) / 20}
        info = {self.scores: score[self.scores]} if self.scores else {}
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


def made_up_data(size=100):
    """Random transitions as NumPy arrays, one in ten of them terminal."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.uniform(-1, 1, (size, 2)).astype(np.float32),
        "actions": np.asfortranarray(rng.uniform(-1, 1, (size, 2)).astype(np.float32)),
        "next_observations": rng.uniform(-1, 1, (size, 2)).astype(np.float32),
        "rewards": rng.uniform(-1, 1, size).astype(np.float32)[::-1],
        "masks": (rng.uniform(size=size) > 0.1).astype(np.float32),
    }


def make_env_and_datasets(name, dataset_dir=None, env_only=False):
    """The data is made up, but for a file of arrays in dataset_dir that takes its place."""
    env = Corridor()
    if env_only:
        return env
    file = Path(dataset_dir or "", "arrays.npz")
    return env, dict(np.load(file)) if file.exists() else made_up_data(), None

"""Tests of the evaluation, most of them against an environment whose outcome is known."""

import functools

import gymnasium
import numpy as np
import ogbench
import pytest
import torch
from gymnasium.vector.async_vector_env import AsyncVectorEnv

import drol
from tests.corridor import NAME, Corridor, install, outcome, train
from tests.helpers import ADROIT, ANTMAZE, every_program

POINTMAZE = "pointmaze-medium-navigate-singletask-task4-v0"


@pytest.fixture
def corridor(monkeypatch):
    return install(monkeypatch)


def policy(observations):
    """Actions that tell episodes and steps apart, so that a mixed-up row would show."""
    return np.stack([np.sin(100 * observations[:, 0] + observations[:, 1]), observations[:, 1]], 1)


def expected(seed):
    """Success, return and length of a corridor's episode under the policy."""
    length, success = outcome(seed)
    seed_number = seed % 1000 / 1000
    return success, sum(np.sin(100 * seed_number + t / 10) - 1 for t in range(length)), length


# ------------------------------------------------------------------------------ what is counted


def test_the_means_are_over_rounds_of_episodes(corridor, monkeypatch):
    """Two rounds of three: each episode has its own seed, and what an environment plays on, while
    another still plays, does not count: neither the step that resets it nor the next episode."""
    key = (56, 1000)
    result = drol.evaluate(policy, drol.make_envs(NAME, 3), 6, key)
    seeds = [[drol.make_seed(*key, i, number) for number in (0, 1)] for i in range(3)]
    success, total, length = np.array([expected(seed) for pair in seeds for seed in pair]).T
    assert result == pytest.approx({
        "score": 100 * success.mean(),
        "return": total.mean(),
        "return_std": total.std(),
        "length": length.mean(),
    })  # fmt: skip
    assert 0 < result["score"] < 100  # the key has both kinds of episode
    assert [env.seeds[0] for env in corridor] == [pair[0] for pair in seeds]
    assert all(set(pair) <= set(env.seeds) for pair, env in zip(seeds, corridor, strict=True))
    uncounted = [seed for env in corridor for seed, _ in env.played if seed < 1000]
    assert any(outcome(seed)[1] for seed in uncounted)  # a success, had it been counted
    # in processes of their own the same, whatever was played before
    monkeypatch.setattr(gymnasium.vector, "AsyncVectorEnv", AsyncVectorEnv)
    envs = drol.make_envs(NAME, 3)
    assert len(envs.processes) == 3
    assert result == drol.evaluate(policy, envs, 6, key) == drol.evaluate(policy, envs, 6, key)
    envs.close()


def test_success_is_what_the_environment_says(corridor):
    """OGBench's returns are below zero even for an episode that reached its goal."""
    env = drol.make_env(NAME)
    scores = []
    for seed in range(20):
        assert env.reset(seed=seed)[1] == {}
        length, success = outcome(seed)
        infos = [env.step(np.array([0.5, 0.0]))[-1] for _ in range(length)]
        assert infos == [{"score": 0.0}] * (length - 1) + [{"score": 100.0 * success}]
        scores.append(infos[-1]["score"])
    assert set(scores) == {0.0, 100.0}


def test_d4rls_score_is_the_normalised_return(corridor, monkeypatch):
    monkeypatch.setattr(Corridor, "d4rl", True)
    still = lambda observations: np.zeros((len(observations), 2))
    result = drol.evaluate(still, drol.make_envs(NAME, 2), 4, (3,))
    assert result["score"] == pytest.approx(100 * (10 - result["length"]) / 20)
    assert result["return"] == -result["length"]


# ------------------------------------------------------------------------------ as a run uses it


def test_every_evaluation_plays_other_episodes(corridor, tmp_path):
    """Of a run with three evaluations and of a run with another seed: no two episodes alike."""
    played = lambda made: [seed for env in made for seed in env.seeds if seed is not None]
    for seed in (0, 1):
        train(tmp_path / str(seed), seed=seed, steps=7, eval_interval=3, eval_episodes=4)
    seeds = played(corridor)
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 4
    rows = torch.load(tmp_path / "0" / "checkpoint.pt", weights_only=True)["rows"]["eval"]
    assert [row["step"] for row in rows] == [3, 6, 7]  # and at the end, whatever the interval
    train(tmp_path / "again", seed=0, steps=7, eval_interval=3, eval_episodes=4)
    assert played(corridor[4:]) == played(corridor[:2])


@every_program
def test_the_actor_that_is_evaluated_is_the_runs(program, corridor, tmp_path, monkeypatch):
    """In the actions, not only in the number."""
    latents, sample = [], program.sample_latents

    def note(*shape, generator):
        z = sample(*shape, generator=generator)
        if shape == (2, 2):  # of two environments
            latents.append(z)
        return z

    monkeypatch.setattr(program, "sample_latents", note)
    networks = train(tmp_path, program)
    seeds = [env.seeds[0] for env in corridor]
    observations = torch.tensor([[seed % 1000 / 1000, 0.0] for seed in seeds])
    actor = program.make_networks(2, 2, (16, 16), torch.Generator())["actor"]
    actor.load_state_dict({name: networks[f"actor.{name}"] for name in actor.state_dict()})
    with torch.no_grad():
        actions = actor(observations, latents[0]).clamp(-1, 1)
    first = np.array([env.played[0][1][0] for env in corridor])
    assert np.allclose(first, actions, atol=1e-6)


# ------------------------------------------------------------------------------ real environments


@pytest.mark.parametrize("name", [POINTMAZE, ANTMAZE, ADROIT])
def test_an_episode_depends_on_its_seed_alone(name):
    """OGBench's mazes draw from NumPy's global generator and from the action space, D4RL's from
    NumPy's."""
    if "singletask" not in name:
        pytest.importorskip("tools.d4rl_compat")

    def play(env, seed):
        observations = [env.reset(seed=seed)[0]]
        for t in range(5):
            action = np.full(env.action_space.shape, np.sin(seed + t), np.float32)
            observations.append(env.step(action)[0])
        return np.concatenate([*observations, env.action_space.sample(), np.random.random(3)])

    env = drol.make_env(name)
    first, other, again = (play(env, seed) for seed in (7, 8, 7))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    np.random.seed(1)
    assert np.array_equal(first, play(drol.make_env(name), 7))


def test_who_walks_to_the_goal_scores_100_and_who_stands_still_0(monkeypatch):
    make = functools.partial(ogbench.make_env_and_datasets, max_episode_steps=400)
    monkeypatch.setattr(ogbench, "make_env_and_datasets", make)
    maze = drol.make_env(POINTMAZE).unwrapped
    maze.reset()
    lengths = []

    def walk(observations):
        """To the next cell on the way; the first environment only stands there."""
        lengths.append(1)
        ways = [maze.get_oracle_subgoal(xy, maze.cur_goal_xy)[0] - xy for xy in observations]
        return np.array([[0, 0], *(way / (np.linalg.norm(way) + 1e-6) for way in ways[1:])])

    envs = gymnasium.vector.SyncVectorEnv([lambda: drol.make_env(POINTMAZE)] * 2)
    result = drol.evaluate(walk, envs, 2, (0, 0))
    assert len(lengths) == 400 and result["score"] == 50
    arrived = 2 * result["length"] - 400  # the length of the episode that arrived
    assert 20 < arrived < 400
    # OGBench rewards -1 per step, and 0 for the one that found itself at the goal
    assert result["return"] == -(400 + arrived - 1) / 2

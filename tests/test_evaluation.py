"""Tests of the evaluation, most of them against an environment whose outcome is known."""

import functools

import numpy as np
import ogbench
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import drol
from tests.fake import NAME, Corridor, outcome
from tests.helpers import ADROIT, ANTMAZE, steps_of

POINTMAZE = "pointmaze-medium-navigate-singletask-task4-v0"
HUMANOID = "humanoidmaze-medium-navigate-singletask-task1-v0"


def vector(count, kind=SyncVectorEnv, name=NAME):
    makers = [functools.partial(drol.make_env, name)] * count
    return kind(makers, autoreset_mode=AutoresetMode.NEXT_STEP)


def policy(observations):
    """Actions that tell episodes and steps apart, so that a mixed-up row would show."""
    return np.stack([np.sin(100 * observations[:, 0] + observations[:, 1]), observations[:, 1]], 1)


def expected(seed):
    """Success, return and length of a corridor's episode under the policy."""
    length, success = outcome(seed)
    seed_number = seed % 1000 / 1000
    return success, sum(np.sin(100 * seed_number + t / 10) - 1 for t in range(length)), length


def seeds_of(corridors):
    """What environments were reset with, but for the trial of one and what goes on by itself."""
    return [[seed for seed in env.seeds if seed] for env in corridors if env.seeds != [0]]


# ------------------------------------------------------------------------------ what is counted


def test_the_means_are_over_rounds_of_episodes(corridors):
    """Two rounds of three: each episode has its own seed, and what an environment plays on, while
    another still plays, does not count: neither the step that resets it nor the next episode."""
    key = (11, 1000)
    result = drol.evaluate(policy, vector(3), 6, key)
    seeds = [[drol.make_seed(*key, i, number) for number in (0, 1)] for i in range(3)]
    success, total, length = np.array([expected(seed) for pair in seeds for seed in pair]).T
    assert result == pytest.approx({"score": 100 * success.mean(), "return": total.mean()})
    assert 0 < result["score"] < 100  # the key has both kinds of episode
    played = [env for env in corridors if env.seeds]
    assert [env.seeds[0] for env in played] == [pair[0] for pair in seeds]
    uncounted = [seed for env in played for seed, _ in env.played if seed < 1000]
    assert any(outcome(seed)[1] for seed in uncounted)  # a success, had it been counted
    # in processes of their own the same, whatever was played before
    envs = vector(3, AsyncVectorEnv)
    assert result == drol.evaluate(policy, envs, 6, key) == drol.evaluate(policy, envs, 6, key)
    five = drol.evaluate(policy, envs, 5, key)  # the last environment's second is left out
    assert five["return"] == pytest.approx((total.sum() - total[5]) / 5)
    envs.close()


@pytest.mark.parametrize("scores", ["success", "normalized_score", None])
def test_the_score_is_what_the_environment_says(corridors, monkeypatch, scores):
    """In per cent: its success, else its normalised return. Without either it is the return."""
    monkeypatch.setattr(Corridor, "scores", scores)
    env, ends = drol.make_env(NAME), []
    for seed in range(20):
        assert env.reset(seed=seed)[1] == {}
        length, success = outcome(seed)
        infos = [env.step(np.array([0.5, 0.0]))[-1] for _ in range(length)]
        score = {"success": 100.0 * success, "normalized_score": 100 * (10 - 0.5 * length) / 20}
        assert infos[-1] == {"score": pytest.approx(score.get(scores, -0.5 * length))}
        if scores == "success":
            assert infos[:-1] == [{"score": 0.0}] * (length - 1)
        ends.append(infos[-1]["score"])
    assert len(set(ends)) > 1


# ------------------------------------------------------------------------------ as a run uses it


def test_every_evaluation_plays_other_episodes(corridors, corridor_run):
    """Of a run with three evaluations and of a run with another seed: no two episodes alike."""
    flags = ["--steps", 7, "--eval-interval", 3, "--eval-episodes", 4]
    first = corridor_run(drol, "first", *flags)
    ours = seeds_of(corridors)
    corridor_run(drol, "second", *flags, "--seed", 1)
    seeds = sum(seeds_of(corridors), [])
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 4
    assert steps_of(first) == [3, 6, 7]  # and at the end, whatever the interval
    corridors.clear()
    corridor_run(drol, "again", *flags)
    assert seeds_of(corridors) == ours


# ------------------------------------------------------------------------------ real environments


@pytest.mark.parametrize("name", [POINTMAZE, HUMANOID, ANTMAZE, ADROIT])
def test_an_episode_depends_on_its_seed_alone(name):
    """OGBench's mazes draw from NumPy's global generator and from the action space, D4RL's from
    NumPy's."""
    if "singletask" not in name:
        pytest.importorskip("d4rl_compat")

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

    result = drol.evaluate(walk, vector(2, name=POINTMAZE), 2, (0, 0))
    assert len(lengths) == 400 and result["score"] == 50
    # OGBench rewards -1 per step, and 0 for the one that found itself at the goal
    arrived = 1 - 2 * result["return"] - 400  # steps of the episode that arrived
    assert 20 < arrived < 400

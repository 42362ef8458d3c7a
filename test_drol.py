"""Tests of the method: python -m pytest -q test_drol.py. The rest is tested in tests/.

The parity tests read every <program>_*.npz in testdata/parity, or in the folder PARITY_DIR.
"""

import ast
import inspect
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import drol
import fql
from tests import conftest
from tests.helpers import PROGRAMS, ROOT, command, every_program, random_batch, read, run_of

# Fixtures that the files in tests/ use too.
shared, data_dir, finished = conftest.shared, conftest.data_dir, conftest.finished
own_signals = conftest.own_signals
PARITY = Path(os.environ.get("PARITY_DIR", ROOT / "testdata" / "parity"))


# -------------------- parity with the released code

METRICS = {
    "actor_loss": "actor_loss",
    "bc_loss": "bc_loss",
    "q_loss": "q_loss",
    "q": "q",
    "critic_loss": "critic/critic_loss",
    "flow_loss": "bc_flow_loss",
    "distill_loss": "distill_loss",
    "candidate_spread": "candidate_divergence",
    "pairwise_distance": "candidate_pairwise_dist",
    "winner_entropy": "best_idx_entropy",
}
RECORDINGS = {name: sorted(PARITY.glob(f"{name}_*.npz")) for name in PROGRAMS}
CASES = [pytest.param(path, False, id=path.stem) for path in sum(RECORDINGS.values(), [])]
for paths in RECORDINGS.values():  # compiled, as on a CPU; for want of time one of each program
    for path in paths[:1]:
        compiled = pytest.param(path, True, id=f"{path.stem}-compiled", marks=pytest.mark.slow)
        CASES.append(compiled)


def recorded_parameters(networks, record, root):
    """{parameter: its recorded value}, for every parameter of the networks."""
    values = {}
    for name, network in networks.items():
        members = list(network) if "critic" in name else [network]
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
    keys = [key for key in record.files if key.startswith(f"{root}/")]
    return {key.rsplit("/", 1)[1]: torch.tensor(record[key]) for key in keys}


def test_there_are_recordings_of_both_programs():
    assert all(RECORDINGS.values()), f"in {PARITY} there are only {RECORDINGS}"


@pytest.mark.parametrize("path, compiled", CASES)
def test_parity_with_the_released_code(path, compiled):
    """Three updates. Losses to 1e-5 of their value, first gradients to 1e-5 of the largest entry,
    parameters to 1e-6."""
    program, record = PROGRAMS[path.stem.split("_")[0]], np.load(path)
    losses = torch.compile(program.losses) if compiled else program.losses
    config = ast.literal_eval(str(record["config"]))
    args = SimpleNamespace(
        **config, normalize_q=config["normalize_q_loss"], routing_dtype="float32"
    )
    dims = (config["obs_dim"], config["action_dim"], config["hidden_dims"])
    networks = program.make_networks(*dims, torch.Generator())
    for parameter, value in recorded_parameters(networks, record, "init").items():
        parameter.data.copy_(value)
    optimizer = torch.optim.Adam(networks.parameters(), lr=config["lr"])
    for step in range(3):
        batch = recorded_tensors(record, f"step{step}/batch")
        noise = recorded_tensors(record, f"step{step}/noise")
        noise = {name.replace("noises", "latents"): x for name, x in noise.items()}  # of FQL
        drawn = program.sample_noise(config["batch"], config["action_dim"], args, torch.Generator())
        assert {key: x.shape for key, x in drawn.items()} == {k: x.shape for k, x in noise.items()}
        metrics = program.diagnostics(networks["actor"], batch, noise)
        metrics |= program.update(networks, optimizer, batch, noise, args, losses)
        if program is fql:  # the released code counts the flow's loss to the actor's
            metrics["actor_loss"] = metrics["actor_loss"] + metrics["flow_loss"]
        if step == 0:
            for parameter, value in recorded_parameters(networks, record, "grad0").items():
                if parameter.requires_grad:
                    assert (parameter.grad - value).abs().max() <= 1e-5 * value.abs().max()
        recorded = {our: f"step{step}/info/{their}" for our, their in METRICS.items()}
        recorded = {our: record[key] for our, key in recorded.items() if key in record}
        assert len(recorded) == {"drol": 8, "fql": 6}[program.ALGORITHM]
        for name, value in recorded.items():
            assert metrics[name].item() == pytest.approx(float(value), rel=1e-5), name
    for parameter, value in recorded_parameters(networks, record, "final").items():
        assert (parameter - value).abs().max() <= 1e-6


# -------------------- networks and latents


@every_program
def test_networks_at_the_start(program):
    """As Flax makes them: Xavier uniform weights, zero biases; nothing alike but the target."""
    networks = program.make_networks(20, 4, (256, 256), torch.Generator().manual_seed(0))
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


@every_program
def test_the_networks_by_hand(program):
    """GELU in its tanh form after each hidden layer; then LayerNorm, in critics alone."""
    networks = program.make_networks(2, 1, (4, 4), torch.Generator().manual_seed(0))
    s, z = torch.rand(5, 2) * 2 - 1, torch.rand(5, 1)

    def by_hand(network, x, norm):
        *hidden, last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for layer in hidden:
            x = layer(x)
            x = 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
            if norm:
                x = (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6) ** 0.5
        return last(x)

    x = torch.cat([s, z], 1)
    torch.testing.assert_close(networks["actor"](s, z), by_hand(networks["actor"], x, False))
    q = torch.stack([by_hand(member, x, True)[:, 0] for member in networks["critic"]])
    torch.testing.assert_close(networks["critic"](s, z), q)
    if program is fql:
        flow, t = networks["flow"], torch.rand(5, 1)
        torch.testing.assert_close(flow(s, z, t), by_hand(flow, torch.cat([x, t], 1), False))


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


class NoCritic(nn.Module):
    """Q = 0 everywhere, so that the actor loss is cloning alone."""

    def forward(self, s, a):
        return torch.zeros(2, len(a))


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
    assert metrics["critic_loss"].item() == loss.item()
    assert metrics["q_data"].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "actor_q_agg, normalize_q, q, q_loss",
    [
        ("min", True, -1.0, 1 / 3),
        ("mean", True, 0.75, -0.75 / 2.25),
        ("min", False, -1.0, 1.0),
        ("mean", False, 0.75, -0.75),
    ],
)
def test_drol_actor_loss(actor_q_agg, normalize_q, q, q_loss):
    """With f(s, z) = z. Of the first state (5, 0) wins, but only because it is clipped to (1, 0);
    of the second (-3, -3), clipped to (-1, -1). Q of the winners: (2, 4) and (-4, 1)."""
    latents = torch.tensor([[[5.0, 0.0], [0.5, 0.0]], [[1.0, 1.0], [-3.0, -3.0]]])
    batch = random_batch(2, 1, 2) | {"actions": torch.tensor([[0.9, 0.0], [-0.5, -1.0]])}
    actor = lambda s, z: z
    loss, metrics = drol.actor_loss(
        actor, HandCritic(), batch, latents, 0.7, actor_q_agg, normalize_q
    )
    bc_loss = (0.1**2 + 0.5**2) / 4
    values = [metrics[name].item() for name in ("actor_loss", "bc_loss", "q_loss", "q")]
    assert values == pytest.approx([0.7 * bc_loss + q_loss, bc_loss, q_loss, q])
    assert loss is metrics["actor_loss"]


@pytest.mark.parametrize(
    "actor_q_agg, normalize_q, q, q_loss",
    [
        ("mean", False, 2.55, -2.55),
        ("min", False, 1.4, -1.4),
        ("mean", True, 2.55, -1.0),
    ],
)
def test_fql_actor_loss(actor_q_agg, normalize_q, q, q_loss):
    """With f(s, z) = 2z and a flow of velocity 0.3: endpoints 0.5 and 1 (clipped), actions 0.4 and
    4. Distillation takes the 4 as it is, Q takes it clipped to 1."""
    batch, z = random_batch(2, 1, 1), torch.tensor([[0.2], [2.0]])
    actor = lambda s, z: 2 * z
    flow = lambda s, x, t: torch.full_like(x, 0.3)
    loss, metrics = fql.actor_loss(
        actor, flow, HandCritic(), batch, z, 10, 0.7, actor_q_agg, normalize_q
    )
    distill_loss = (0.1**2 + 3**2) / 2
    names = ("actor_loss", "distill_loss", "q_loss", "q")
    expected = [0.7 * distill_loss + q_loss, distill_loss, q_loss, q]
    assert [metrics[name].item() for name in names] == pytest.approx(expected)
    assert loss is metrics["actor_loss"]


@every_program
def test_the_divisor_of_q_is_at_least_1e_6(program):
    batch, z = random_batch(2, 1, 1), torch.zeros(2, 1, 1)
    actor, critic = lambda s, z: z, HandCritic(1e-8)  # Q is 0 and 3e-8, in the mean 1.5e-8
    if program is drol:
        loss, _ = drol.actor_loss(actor, critic, batch, z, 0.0, "mean", True)
    else:
        flow = lambda s, x, t: x
        loss, _ = fql.actor_loss(actor, flow, critic, batch, z[:, 0], 1, 0.0, "mean", True)
    assert loss.item() == pytest.approx(-1.5e-2)


def test_flow_loss():
    """v = x + 10 t at t = 0.25, between the noise 0.2 and the action 0.4: 2.75 against 0.2."""
    batch = random_batch(3, 1, 1) | {"actions": torch.full((3, 1), 0.4)}
    x_0, t = torch.full((3, 1), 0.2), torch.full((3, 1), 0.25)
    loss, metrics = fql.flow_loss(lambda s, x, t: x + 10 * t, batch, x_0, t)
    assert loss.item() == metrics["flow_loss"].item() == pytest.approx(2.55**2)


def test_flow_endpoint():
    """dx/dt = x + t from 0.1 in two steps: 0.15, then 0.15 + (0.15 + 0.5) / 2. 5 is clipped."""
    start = torch.tensor([[0.1], [5.0]])
    endpoint = fql.flow_action(lambda s, x, t: x + t, None, start, 2)
    assert endpoint.flatten().tolist() == pytest.approx([0.475, 1])


def test_diagnostics_of_drol():
    actor = lambda s, z: z
    batch = {"observations": torch.zeros(2, 1), "actions": torch.zeros(2, 2)}
    latents = torch.tensor([[[0.0, 0.0], [0.6, 0.8]], [[0.5, 0.0], [0.0, 0.1]]])
    noise = {"latents": latents, "next_latents": torch.tensor([[0.3, 0.3], [4.0, 0.3]])}
    metrics = drol.diagnostics(actor, batch, noise)
    d1, d2 = 1.0, 0.26  # squared distances between the two candidates
    expected = {
        "candidate_spread": (d1 + d2) / 2 / 4 / 2,
        "pairwise_distance": ((d1 + d2) / 2 / 2) ** 0.5,
        "winner_entropy": math.log(2),
        "mse": (3 * 0.3**2 + 1) / 4,  # the 4 is clipped
    }
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(expected)
    single = drol.diagnostics(actor, batch, noise | {"latents": latents[:, :1]})
    assert [single[key].item() for key in expected if key != "mse"] == [0, 0, 0]


def test_diagnostics_of_fql():
    batch = {"observations": torch.zeros(2, 1), "actions": torch.zeros(2, 1)}
    metrics = fql.diagnostics(lambda s, z: z, batch, {"next_latents": torch.tensor([[0.3], [4.0]])})
    assert metrics["mse"].item() == pytest.approx((0.3**2 + 1) / 2)


# -------------------- who learns from what


@pytest.fixture
def toy():
    """Networks, a batch and latents with B = 32, K = 6, O = 5, A = 3."""
    networks = drol.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0))
    latents = drol.sample_latents(32, 6, 3, generator=torch.Generator().manual_seed(1))
    return networks, random_batch(32, 5, 3), latents


@pytest.fixture
def flow_toy():
    """FQL's networks, a batch and noise with B = 32, O = 5, A = 3."""
    networks = fql.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0))
    noise = fql.sample_noise(32, 3, None, torch.Generator().manual_seed(1))
    return networks, random_batch(32, 5, 3), noise


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


@pytest.mark.parametrize("bc_coef", [0.0, 1.0])
@pytest.mark.parametrize("normalize_q", [True, False])
def test_drols_losses_move_one_network_each(toy, bc_coef, normalize_q):
    networks, batch, latents = toy
    actor, critic, target_critic = networks.values()
    loss, _ = drol.actor_loss(actor, critic, batch, latents, bc_coef, "min", normalize_q)
    assert learning(networks, loss) == {"actor"}
    loss, _ = drol.critic_loss(actor, critic, target_critic, batch, latents[:, 0], 0.99, "mean")
    assert learning(networks, loss) == {"critic"}
    assert all(parameter.requires_grad for parameter in critic.parameters())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("normalize_q", [True, False])
def test_fqls_losses_move_one_network_each(flow_toy, alpha, normalize_q):
    networks, batch, noise = flow_toy
    actor, flow, critic = (networks[name] for name in ("actor", "flow", "critic"))
    loss, _ = fql.actor_loss(
        actor, flow, critic, batch, noise["latents"], 10, alpha, "mean", normalize_q
    )
    assert learning(networks, loss) == {"actor"}
    loss, _ = fql.flow_loss(flow, batch, noise["x_0"], noise["t"])
    assert learning(networks, loss) == {"flow"}


@pytest.mark.parametrize("normalize_q", [True, False])
def test_q_alone_moves_the_actor_uphill(toy, normalize_q):
    networks, batch, latents = toy
    actor, critic = networks["actor"], networks["critic"]
    optimizer = torch.optim.SGD(actor.parameters(), lr=1e-3)
    values = []
    for _ in range(5):
        loss, metrics = drol.actor_loss(actor, critic, batch, latents, 0.0, "min", normalize_q)
        values.append(metrics["q"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] > values[0]


def test_losers_get_no_gradient(toy):
    networks, batch, latents = toy
    actor, critic = networks["actor"], networks["critic"]
    latents.requires_grad_()
    drol.actor_loss(actor, critic, batch, latents, 1.0, "min", True)[0].backward()
    candidates = drol.sample_candidates(actor, batch["observations"], latents)
    assert candidates.shape == (32, 6, 3) and not candidates.requires_grad
    winner = drol.route(candidates, batch["actions"])
    touched = latents.grad.abs().sum(-1) > 0  # (B, K)
    assert torch.equal(touched, nn.functional.one_hot(winner, 6).bool())
    assert len(winner.unique()) == 6


@pytest.mark.parametrize("actor_q_agg", ["min", "mean"])
def test_winner_only_gradient_is_that_of_all_candidates(toy, actor_q_agg):
    """Against a transcription that differentiates all K candidates and both critics on each."""
    networks, batch, latents = toy
    actor, critic, (B, K, A) = networks["actor"], networks["critic"], latents.shape
    loss, _ = drol.actor_loss(actor, critic, batch, latents, 0.7, actor_q_agg, True)
    ours = torch.autograd.grad(loss, list(actor.parameters()))
    s = batch["observations"].repeat_interleave(K, 0)
    candidates = actor(s, latents.reshape(B * K, A)).clamp(-1, 1)
    q = critic(s, candidates)
    q = (q.amin(0) if actor_q_agg == "min" else q.mean(0)).view(B, K)
    distance = (candidates.view(B, K, A) - batch["actions"][:, None]).square()
    winner = distance.sum(-1).argmin(1, keepdim=True)
    q = q.gather(1, winner)
    bc_loss = distance.mean(-1).gather(1, winner).mean()
    loss = 0.7 * bc_loss - q.mean() / q.detach().abs().mean()
    theirs = torch.autograd.grad(loss, list(actor.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("K", [1, 16, 64])
def test_a_candidate_is_the_actors_action_for_its_latent(toy, K):
    actor, s = toy[0]["actor"], torch.rand(8, 5)
    latents = drol.sample_latents(8, K, 3, generator=torch.Generator().manual_seed(1))
    candidates = drol.sample_candidates(actor, s, latents)
    for k in range(K):
        torch.testing.assert_close(candidates[:, k], actor(s, latents[:, k]).clamp(-1, 1))


def test_bfloat16_routes_and_float32_learns(toy):
    networks, batch, _ = toy
    actor, critic, s = networks["actor"], networks["critic"], batch["observations"]
    latents = drol.sample_latents(32, 500, 3, generator=torch.Generator().manual_seed(1))
    exact = drol.sample_candidates(actor, s, latents)
    rounded = drol.sample_candidates(actor, s, latents, "bfloat16")
    assert 0 < (rounded - exact).abs().max() < 3 * 2**-8
    winner = drol.route(rounded, batch["actions"])
    assert (winner != drol.route(exact, batch["actions"])).any()  # or this test shows nothing
    z = latents[torch.arange(32), winner]
    alone, _ = drol.actor_loss(actor, critic, batch, z[:, None], 0.7, "min", True)  # in float32
    args = SimpleNamespace(bc_coef=0.7, discount=0.99, q_agg="mean", actor_q_agg="min")
    args.normalize_q, args.routing_dtype = True, "bfloat16"
    noise = {"latents": latents, "next_latents": latents[:, 0]}
    loss = drol.losses(networks, batch, noise, args)[1]["actor_loss"]
    assert loss.dtype == torch.float32
    ours, theirs = (torch.autograd.grad(x, list(actor.parameters())) for x in (loss, alone))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -------------------- theory


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
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    for _ in range(steps):
        a = modes[torch.randint(len(modes), (256,), generator=g)]
        a = a + 0.02 * torch.randn(256, A, generator=g)
        batch = {"observations": torch.zeros(256, 1), "actions": a}
        latents = drol.sample_latents(256, K, A, generator=g)
        if fixed is not None:
            latents = fixed.expand(256, -1, -1)
        loss, metrics = drol.actor_loss(actor, NoCritic(), batch, latents, 1.0, "min", True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = {"latents": latents, "next_latents": latents[:, 0]}
    return actor, drol.diagnostics(actor, batch, noise) | metrics


@pytest.mark.parametrize("seed", range(3))
def test_theory_training_covers_separated_modes(seed):
    """Statement 1 in training: of three fixed latents each ends on one of three modes."""
    modes = torch.tensor([[-0.8], [0.0], [0.8]])
    fixed = torch.tensor([[[-0.9], [0.0], [0.9]]])
    actor, _ = clone(3, modes, 1200, seed, fixed)
    candidates = drol.sample_candidates(actor, torch.zeros(1, 1), fixed)[0]  # (3, 1)
    distance = (candidates - modes.T).abs()  # (candidate, mode)
    assert distance.min(0).values.max() < 0.05
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]


def test_theory_tether_and_handoff():
    """Statement 2: the pull on a candidate is 2 (x - a) while it is the nearest, and then passes
    to the other. Alone, it is held whatever its distance."""
    a, other, batch = 0.5, 0.2, {"observations": torch.zeros(1, 1)}
    batch["actions"] = torch.tensor([[a]])

    def pull(*places):
        latents = torch.tensor(places).view(1, -1, 1).requires_grad_()
        loss, _ = drol.actor_loss(lambda s, z: z, NoCritic(), batch, latents, 1.0, "min", True)
        loss.backward()
        return latents.grad.flatten().tolist()

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
    spread = [result["candidate_spread"].item() for result in results]
    bc_loss = [result["bc_loss"].item() for result in results]
    assert spread == sorted(spread) and spread[0] == 0 and spread[-1] > 0.2
    assert bc_loss == sorted(bc_loss, reverse=True) and bc_loss[-1] < bc_loss[0] / 5


# -------------------- the two files


def sections(program):
    """{banner: text} of a file, its docstring and imports under ''."""
    parts = re.split(r"^# -{20} (.+)\n", Path(program.__file__).read_text(), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def test_the_two_files_share_all_but_the_algorithm():
    ours, theirs = sections(drol), sections(fql)
    assert list(ours) == list(theirs)
    names = {"data", "evaluation", "checkpoints and records", "training", "main"}
    assert set(ours) == {"", "settings", "networks", "algorithm", "published settings"} | names
    for name in names:
        assert ours[name] == theirs[name], name
    shared = ("MLP", "Critic", "critic_loss", "update", "act", "find_task", "check_same")
    for name in shared:
        both = [inspect.getsource(getattr(program, name)) for program in (drol, fql)]
        assert both[0] == both[1], name
    flags = [set(vars(program.Args(env_id="scene"))) for program in (drol, fql)]
    assert flags[0] - flags[1] == {"k", "bc_coef", "routing_dtype"}
    assert flags[1] - flags[0] == {"alpha", "flow_steps"}


def test_the_functions_that_people_copy_need_only_torch(toy):
    names = ("sample_latents", "sample_candidates", "route", "critic_loss", "actor_loss")
    space = {"torch": torch}
    exec("\n\n".join(inspect.getsource(getattr(drol, name)) for name in names), space)
    networks, batch, _ = toy
    actor, critic, target = networks.values()
    latents = space["sample_latents"](32, 4, 3, generator=torch.Generator().manual_seed(0))
    for name, arguments in {
        "actor_loss": (actor, critic, batch, latents, 1.0, "min", True),
        "critic_loss": (actor, critic, target, batch, latents[:, 0], 0.99, "min"),
    }.items():
        assert space[name](*arguments)[0] == getattr(drol, name)(*arguments)[0]


# -------------------- from the command line to the policy


def same(a, b):
    """Whether two checkpoints' contents are alike, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a, b):
    """Two run folders must hold the same to the last bit, but for the clock."""
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (a, b)]
    rows = [[read(run / f"{name}.csv") for name in ("eval", "train")] for run in (a, b)]
    for state, (_, train) in zip(states, rows, strict=True):
        for row in (*train, *state["rows"]["train"]):
            assert float(row.pop("updates_per_second")) > 0
        del state["settings"]  # --steps and --run-dir differ
    assert rows[0] == rows[1]
    assert same(*states)


@every_program
def test_a_run_from_end_to_end_and_its_resume(program, finished, data_dir, tmp_path, capsys):
    """40 updates at once, and 20 that are continued to 40, are the same run."""
    program.main(command(data_dir, tmp_path / "whole", "--steps", 40))
    whole, parts = run_of(tmp_path / "whole"), finished(program)
    program.main(command(data_dir, tmp_path / "runs", "--steps", 40))
    assert "resumed at update 20" in capsys.readouterr().out
    assert_same_run(whole, parts)

    assert [row["step"] for row in read(whole / "train.csv")] == ["10", "20", "30", "40"]
    for row in read(whole / "train.csv"):
        assert all(math.isfinite(float(value)) for value in row.values())
    evaluations = read(whole / "eval.csv")
    assert [row["step"] for row in evaluations] == ["20", "40"]
    for row in evaluations:
        assert float(row["score"]) in (0, 50, 100) and 1 <= float(row["length"]) <= 1000
        assert -float(row["length"]) <= float(row["return"]) <= 0
    config = json.loads((whole / "config.json").read_text())
    assert config["settings"]["steps"] == 40 and config["data"]["transitions"] == 2000

    policy = program.load_policy(whole / "checkpoint.pt")
    actions = policy(np.zeros((100, 2)))
    assert actions.shape == (100, 2) and np.abs(actions).max() <= 1
    assert len(np.unique(actions, axis=0)) == 100
    other = fql if program is drol else drol
    with pytest.raises(other.UserError, match=program.ALGORITHM):
        other.load_policy(whole / "checkpoint.pt")


def test_a_run_with_bfloat16_routing_resumes_to_the_same_numbers(data_dir, tmp_path):
    for folder, steps in (("whole", 40), ("parts", 20), ("parts", 40)):
        flags = ["--routing-dtype", "bfloat16", "--eval-episodes", 1, "--steps", steps]
        drol.main(command(data_dir, tmp_path / folder, *flags))
    assert_same_run(run_of(tmp_path / "whole"), run_of(tmp_path / "parts"))

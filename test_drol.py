"""Tests of drol.py, fql.py and tools/: bash run_all.sh test, or python -m pytest -q test_drol.py

The parity tests read every <program>_*.npz in testdata/parity, or in the folder that PARITY_DIR names.
"""

import ast
import csv
import inspect
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import filelock
import gymnasium
import numpy as np
import ogbench
import pytest
import torch

import drol
import fql
from tools import bench, collect, figures

ROOT = Path(__file__).parent
PARITY = Path(os.environ.get("PARITY_DIR", ROOT / "testdata" / "parity"))
PROGRAMS = {"drol": drol, "fql": fql}
every_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
SMALL = ["--hidden-dims", "16", "16", "--batch-size", "32", "--log-interval", "10", "--eval-envs", "2",
         "--eval-episodes", "2", "--device", "cpu"]


# ------------------------------------------------------------------------------------------------- helpers


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A small pointmaze-medium dataset, made by the real collector."""
    folder = tmp_path_factory.mktemp("data")
    collect.main(["--env-id", "pointmaze-medium", "--episodes", "2", "--data-dir", str(folder), "--jobs", "2"])
    return folder


def command(data_dir, run_dir, *flags):
    return ["--env-id", "pointmaze-medium", "--data-dir", str(data_dir), "--run-dir", str(run_dir), "--steps", "20",
            *SMALL, *map(str, flags)]


def run_of(run_dir):
    """The one run folder below run_dir."""
    (config,) = Path(run_dir).glob("*/*/*/config.json")
    return config.parent


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    return torch.load(path, weights_only=True)["networks"]


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def failing(program, capsys, args, *words):
    """Runs the program, which must exit with 1 and one line on stderr that holds all the words."""
    with pytest.raises(SystemExit) as exit:
        program.main(args)
    message = str(exit.value)
    assert message.startswith("error: ") and "\n" not in message, message
    for word in words:
        assert str(word) in message, message
    capsys.readouterr()


def random_batch(batch_size, observation_dim, action_dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g) * 2 - 1
    return {"observations": rand(batch_size, observation_dim), "actions": rand(batch_size, action_dim),
            "next_observations": rand(batch_size, observation_dim), "rewards": rand(batch_size),
            "masks": (rand(batch_size) > -0.8).float()}


# -------------------------------------------------------------------------------------- settings and presets


def published_rows(algorithm, benchmark):
    rows = read(ROOT / "testdata" / "published_settings.csv")
    return [row for row in rows if row["method"] == algorithm and row["benchmark"] == benchmark]


@every_program
def test_ogbench_settings_are_the_published_ones(program):
    rows = published_rows(program.ALGORITHM, "ogbench")
    assert len(rows) == {"drol": 100, "fql": 50}[program.ALGORITHM]
    for row in rows:
        flags = ["--k", row["k"]] if row["suite"] == "DROL*" else []  # DROL(16) is the default
        args, env, _ = program.resolve(program.tyro.cli(program.Args, args=[
            "--env-id", row["family"], "--task", row["task"], *flags]))
        assert env.name == row["full_name"]
        assert (args.q_agg, args.discount, args.steps) == (row["q_agg"], float(row["discount"]), int(row["steps"]))
        for name in ("k", "bc_coef", "alpha"):
            if row[name]:
                assert getattr(args, name) == float(row[name]), (row, name)
        assert (args.lr, args.batch_size, args.tau, args.hidden_dims) == (3e-4, 256, 0.005, (512,) * 4)
        assert (args.eval_interval, args.eval_episodes) == (100_000, 50)
        by_full_name = program.find_env(row["full_name"])
        assert by_full_name == env


@every_program
def test_default_tasks_are_ogbenchs(program):
    families = [id.removesuffix("-singletask-v0") for id in gymnasium.registry if id.endswith("-singletask-v0")]
    families = [family for family in families if "visual" not in family]
    families.remove("humanoidmaze-teleport")  # OGBench registers it and cannot make it
    with pytest.raises(program.UserError, match="unknown"):
        program.find_env("humanoidmaze-teleport")
    assert len(families) == 23
    for family in families:
        env = program.find_env(family)
        single = gymnasium.make(f"{family}-singletask-v0")
        assert (env.task, 5) == (single.unwrapped._reward_task_id, single.unwrapped.num_tasks), family
        single.close()


@every_program
def test_settings_origin_and_unpublished_families(program):
    args, env, origin = program.resolve(program.Args(env_id="cube-triple", seed=3))
    assert env.name == "cube-triple-play-singletask-task2-v0" and origin["seed"] == "command line"
    assert origin["discount"] == "not published; as for cube-double" and origin["lr"] == "default"
    assert program.resolve(program.Args(env_id="cube-single"))[2]["discount"] == "published for cube-single"
    assert program.find_env("cube-single-noisy").dataset == "cube-single-noisy-v0"
    assert program.find_env("antmaze-medium-stitch-singletask-task4-v0").task == 4
    assert args.data_dir == Path("~/.ogbench/data").expanduser()


@every_program
def test_every_setting_is_read(program):
    tree = ast.parse(Path(program.__file__).read_text())
    read_names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {field.name for field in program.fields(program.Args)} <= read_names
    assert program.NOT_HASHED <= {field.name for field in program.fields(program.Args)}


@every_program
@pytest.mark.parametrize("flags, words", [
    (["--env-id", "humanoid-medium"], ["--env-id humanoid-medium", "humanoidmaze-medium"]),
    (["--env-id", "visual-cube-single-play-singletask-v0"], ["--env-id visual", "cube-single"]),
    (["--task", "9"], ["--task 9", "1 to 5"]),
    (["--task", "0"], ["--task 0", "1 to 5"]),
    (["--env-id", "cube-single-play-singletask-task2-v0", "--task", "3"], ["--task 3", "contradicts"]),
    (["--lr", "-1"], ["--lr -1", "0 to 1"]),
    (["--lr", "nan"], ["--lr nan"]),
    (["--discount", "1.5"], ["--discount 1.5", "0 to 1"]),
    (["--tau", "-0.1"], ["--tau -0.1"]),
    (["--steps", "0"], ["--steps 0", "1 to"]),
    (["--seed", "-1"], ["--seed -1", "0 to"]),
    (["--hidden-dims", "16", "0"], ["--hidden-dims", "1 to"]),
    (["--eval-envs", "0"], ["--eval-envs 0"]),
    (["--device", "cuda:7"], ["--device cuda:7", "auto"]),
    (["--device", "gpu"], ["--device gpu", "auto"]),
])
def test_wrong_settings(program, capsys, data_dir, tmp_path, flags, words):
    failing(program, capsys, command(data_dir, tmp_path, *flags), *words)
    assert not list(tmp_path.iterdir())
    program.resolve(program.tyro.cli(program.Args, args=command(data_dir, tmp_path)))


@pytest.mark.parametrize("program, flag, wrong", [(drol, "--k", 0), (drol, "--bc-coef", -1), (fql, "--alpha", -1),
                                                  (fql, "--flow-steps", 0)])
def test_wrong_settings_of_one_program(program, capsys, data_dir, tmp_path, flag, wrong):
    failing(program, capsys, command(data_dir, tmp_path, flag, wrong), f"{flag} {wrong}")
    program.resolve(program.tyro.cli(program.Args, args=command(data_dir, tmp_path, flag, 1)))


# ------------------------------------------------------------------------------------------------- parity


def recorded_parameters(program_networks, record, root):
    """{parameter: its recorded value}, for every parameter of the networks."""
    values = {}
    for name, network in program_networks.items():
        members = list(network) if "critic" in name else [network]
        for i, member in enumerate(members):
            at = lambda key: torch.tensor(record[key][i] if "critic" in name else record[key])
            linear = [layer for layer in member.modules() if isinstance(layer, torch.nn.Linear)]
            norms = [layer for layer in member.modules() if isinstance(layer, torch.nn.LayerNorm)]
            for j, layer in enumerate(linear):
                values[layer.weight] = at(f"{root}/{name}/Dense_{j}/kernel").T
                values[layer.bias] = at(f"{root}/{name}/Dense_{j}/bias")
            for j, layer in enumerate(norms):
                values[layer.weight] = at(f"{root}/{name}/LayerNorm_{j}/scale")
                values[layer.bias] = at(f"{root}/{name}/LayerNorm_{j}/bias")
    assert len(values) == len(list(program_networks.parameters()))
    return values


METRICS = {"actor_loss": "actor_loss", "bc_loss": "bc_loss", "q_loss": "q_loss", "q": "q",
           "critic_loss": "critic/critic_loss", "flow_loss": "bc_flow_loss", "distill_loss": "distill_loss"}
DIAGNOSTICS = {"candidate_spread": "candidate_divergence", "pairwise_distance": "candidate_pairwise_dist",
               "winner_entropy": "best_idx_entropy"}


def test_there_are_parity_recordings_of_both_programs():
    assert all(list(PARITY.glob(f"{name}_*.npz")) for name in PROGRAMS), f"no recordings in {PARITY}"


RECORDINGS = sorted(p for name in PROGRAMS for p in PARITY.glob(f"{name}_*.npz"))


@pytest.mark.parametrize("path, compiled", [(path, False) for path in RECORDINGS] + [
    (next(path for path in RECORDINGS if path.stem.startswith(name)), True) for name in PROGRAMS],
    ids=lambda value: value.stem if isinstance(value, Path) else ("eager", "compiled")[value])
def test_parity_with_the_released_code(path, compiled):
    """Three updates: losses 1e-5 relative, first gradients 1e-5 of the largest entry, parameters 1e-6."""
    program, record = PROGRAMS[path.stem.split("_")[0]], np.load(path)
    losses = program.compile_losses(torch.device("cpu")) if compiled else program.losses
    assert (losses is not program.losses) == compiled
    config = ast.literal_eval(str(record["config"]))
    args = SimpleNamespace(**config, normalize_q=config["normalize_q_loss"])
    dims = (config["obs_dim"], config["action_dim"], config["hidden_dims"])
    networks = program.make_networks(*dims, torch.Generator())
    for parameter, value in recorded_parameters(networks, record, "init").items():
        parameter.data.copy_(value)
    trained = [parameter for parameter in networks.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config["lr"], fused=True)
    for step in range(3):
        entries = lambda kind: {key.rsplit("/", 1)[1]: torch.tensor(record[key]) for key in record.files
                                if key.startswith(f"step{step}/{kind}/")}
        batch, noise = entries("batch"), entries("noise")
        drawn = program.sample_noise(config["batch"], config["action_dim"], args, torch.Generator())
        assert {key: value.shape for key, value in drawn.items()} == {key: x.shape for key, x in noise.items()}
        metrics = program.diagnostics(networks["actor"], batch, noise)
        metrics |= program.update(networks, optimizer, batch, noise, args, losses)
        if program is fql:  # the released code counts the flow's loss to the actor's
            metrics["actor_loss"] = metrics["actor_loss"] + metrics["flow_loss"]
        if step == 0:
            for parameter, value in recorded_parameters(networks, record, "grad0").items():
                if parameter.requires_grad:
                    assert (parameter.grad - value).abs().max() <= 1e-5 * value.abs().max()
        compared = 0
        for ours, theirs in (METRICS | DIAGNOSTICS).items():
            if f"step{step}/info/{theirs}" in record:
                value = float(record[f"step{step}/info/{theirs}"])
                assert metrics[ours].item() == pytest.approx(value, rel=1e-5), ours
                compared += 1
        assert compared == {"drol": 8, "fql": 6}[program.ALGORITHM]
    for parameter, value in recorded_parameters(networks, record, "final").items():
        assert (parameter - value).abs().max() <= 1e-6


# ---------------------------------------------------------------------------------------------- algorithm


@pytest.fixture
def toy():
    """Networks, a batch and latents with B = 32, K = 6, O = 5, A = 3."""
    networks = drol.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0))
    latents = drol.sample_latents(32, 6, 3, generator=torch.Generator().manual_seed(1))
    return networks, random_batch(32, 5, 3), latents


def test_critic_gets_no_gradient_from_the_actor_loss(toy):
    networks, batch, latents = toy
    loss, _ = drol.actor_loss(networks["actor"], networks["critic"], batch, latents, 1.0, "min", True)
    loss.backward()
    assert all(parameter.grad is None for parameter in networks["critic"].parameters())
    assert all(parameter.requires_grad for parameter in networks["critic"].parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in networks["actor"].parameters())


def test_actor_gets_no_gradient_from_the_critic_loss(toy):
    networks, batch, latents = toy
    loss, _ = drol.critic_loss(networks["actor"], networks["critic"], networks["target_critic"], batch,
                               latents[:, 0], 0.99, "mean")
    loss.backward()
    assert all(parameter.grad is None for parameter in networks["actor"].parameters())
    assert all(parameter.grad is None for parameter in networks["target_critic"].parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in networks["critic"].parameters())


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
        assert max(parameter.grad.abs().max() for parameter in actor.parameters()) > 1e-4
        optimizer.step()
    assert values[-1] > values[0]


def test_losers_get_no_gradient(toy):
    networks, batch, latents = toy
    latents.requires_grad_()
    loss, _ = drol.actor_loss(networks["actor"], networks["critic"], batch, latents, 1.0, "min", True)
    loss.backward()
    winner = drol.route(drol.sample_candidates(networks["actor"], batch["observations"], latents), batch["actions"])
    touched = latents.grad.abs().sum(-1) > 0  # (B, K)
    assert torch.equal(touched, torch.nn.functional.one_hot(winner, 6).bool())
    assert winner.unique().numel() > 1


@pytest.mark.parametrize("actor_q_agg", ["min", "mean"])
def test_winner_only_gradient_is_that_of_all_candidates(toy, actor_q_agg):
    """Against a direct transcription that differentiates all K candidates and both critics on each."""
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
    bc = distance.mean(-1).gather(1, winner).mean()
    theirs = torch.autograd.grad(0.7 * bc - q.mean() / q.detach().abs().mean(), list(actor.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_route_takes_the_nearest_and_the_first_of_equals():
    candidates = torch.tensor([[[0.0], [0.5], [1.0]], [[0.3], [0.3], [0.9]], [[-1.0], [1.0], [1.0]]])
    assert drol.route(candidates, torch.tensor([[0.6], [0.2], [0.0]])).tolist() == [1, 0, 0]


@pytest.mark.parametrize("K", [1, 15, 16, 17, 64])
def test_candidates_do_not_depend_on_how_they_are_split(K):
    networks, s = drol.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0)), torch.rand(8, 5)
    latents = drol.sample_latents(8, K, 3, generator=torch.Generator().manual_seed(1))
    candidates = drol.sample_candidates(networks["actor"], s, latents)
    assert candidates.shape == (8, K, 3) and not candidates.requires_grad
    for k in range(K):
        assert torch.allclose(candidates[:, k], networks["actor"](s, latents[:, k]).clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("A", [1, 2, 5, 21])
def test_latents_are_uniform_in_the_ball(A):
    z = drol.sample_latents(2000, 10, A, generator=torch.Generator().manual_seed(0)).reshape(-1, A)
    volume = ((z.norm(dim=-1) / A**0.5) ** A).sort().values  # uniform in [0, 1] if z is uniform in the ball
    assert (volume - torch.linspace(0, 1, len(volume))).abs().max() < 1.63 / len(volume) ** 0.5  # Kolmogorov, 1 %
    assert z.mean(0).abs().max() < 5 / len(z) ** 0.5
    # the variance of each coordinate of a uniform ball of radius sqrt(A) is A / (A + 2)
    assert torch.allclose(z.var(0), torch.tensor(A / (A + 2)), rtol=0.05)


@pytest.mark.parametrize("q_agg, expected", [("mean", 1 + 0.9 * 0.5 * 4), ("min", 1 + 0.9 * 0.5 * 3)])
def test_td_target(q_agg, expected):
    """y = r + discount * m * agg(Q) with r = 1, discount = 0.9, m = 0.5 and targets of 3 and 5."""
    batch = random_batch(4, 2, 1) | {"rewards": torch.ones(4), "masks": torch.full((4,), 0.5)}
    target = lambda s, a: torch.tensor([[3.0] * 4, [5.0] * 4])
    critic = lambda s, a: torch.zeros(2, 4)
    loss, _ = drol.critic_loss(lambda s, z: z, critic, target, batch, torch.zeros(4, 1), 0.9, q_agg)
    assert loss.item() == pytest.approx(expected**2)


def test_diagnostics_by_hand_and_at_k_1():
    actor = lambda s, z: z
    batch = {"observations": torch.zeros(2, 1), "actions": torch.zeros(2, 2)}
    latents = torch.tensor([[[0.0, 0.0], [0.6, 0.8]], [[0.5, 0.0], [0.0, 0.1]]])
    metrics = drol.diagnostics(actor, batch, {"latents": latents, "next_latents": torch.full((2, 2), 0.3)})
    d1, d2 = 1.0, 0.26  # squared distances between the two candidates
    assert metrics["candidate_spread"].item() == pytest.approx((d1 + d2) / 2 / 4 / 2)
    assert metrics["pairwise_distance"].item() == pytest.approx(((d1 + d2) / 2 / 2) ** 0.5)
    assert metrics["winner_entropy"].item() == pytest.approx(np.log(2))
    assert metrics["mse"].item() == pytest.approx(0.09)
    single = drol.diagnostics(actor, batch, {"latents": latents[:, :1], "next_latents": latents[:, 0]})
    assert [single[key].item() for key in DIAGNOSTICS] == [0, 0, 0]


@pytest.fixture
def flow_toy():
    """FQL's networks, a batch and the noise of an update, with B = 32, O = 5, A = 3."""
    networks = fql.make_networks(5, 3, (32, 32), torch.Generator().manual_seed(0))
    return networks, random_batch(32, 5, 3), fql.sample_noise(32, 3, None, torch.Generator().manual_seed(1))


def fql_actor_loss(networks, batch, noise, alpha, normalize_q=False):
    parts = [networks[name] for name in ("actor", "flow", "critic")]
    return fql.actor_loss(*parts, batch, noise["noises"], 10, alpha, "mean", normalize_q)[0]


@pytest.mark.parametrize("normalize_q", [True, False])
def test_fql_gradients(flow_toy, normalize_q):
    """Distillation and Q move the actor alone, each of them; flow matching moves the flow alone."""
    networks, batch, noise = flow_toy
    fql_actor_loss(networks, batch, noise, 1.0, normalize_q).backward()
    assert all(parameter.grad is None for name in ("critic", "flow") for parameter in networks[name].parameters())
    both = [parameter.grad.clone() for parameter in networks["actor"].parameters()]
    networks.zero_grad()
    fql_actor_loss(networks, batch, noise, 0.0, normalize_q).backward()
    q_alone = [parameter.grad.clone() for parameter in networks["actor"].parameters()]
    assert all(q.abs().max() > 1e-6 and (b - q).abs().max() > 1e-6 for b, q in zip(both, q_alone, strict=True))
    networks.zero_grad()
    fql.flow_loss(networks["flow"], batch, noise["x_0"], noise["t"])[0].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in networks["flow"].parameters())
    assert all(parameter.grad is None for name in ("critic", "actor") for parameter in networks[name].parameters())


def test_fql_flow_endpoint_by_hand():
    """dx/dt = x + t from x = 0.1, two Euler steps: 0.1 -> 0.15 -> 0.15 + (0.15 + 0.5) / 2 = 0.475; then clipped."""
    flow = lambda s, x, t: x + t
    endpoint = fql.flow_action(flow, None, torch.tensor([[0.1], [5.0]]), 2)
    assert endpoint.flatten().tolist() == pytest.approx([0.475, 1])


def test_fql_q_alone_moves_the_actor_uphill(flow_toy):
    networks, batch, noise = flow_toy
    optimizer = torch.optim.SGD(networks["actor"].parameters(), lr=1e-3)
    values = []
    for _ in range(5):
        loss = fql_actor_loss(networks, batch, noise, 0.0)
        values.append(-loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] > values[0]


# -------------------------------------------------------------------------------------------------- theory


class NoCritic(torch.nn.Module):
    """Q = 0 everywhere, so that the actor loss is cloning alone."""

    def forward(self, s, a):
        return torch.zeros(2, len(a))


@pytest.mark.parametrize("M", [2, 3, 4])
def test_theory_separated_intervals_get_a_prototype_each(M):
    """Statement 1: of all placements of K = M prototypes, every minimiser has one in each of M separated intervals."""
    data = torch.cat([3.0 * m + torch.linspace(0, 1, 5) for m in range(M)])  # intervals [3m, 3m + 1]
    places = torch.arange(0, 3 * (M - 1) + 1.01, 0.25)
    prototypes = torch.combinations(places, M, with_replacement=True)  # (C, K)
    losses = []
    for chunk in prototypes.split(20_000):
        candidates = chunk[:, None, :, None].expand(-1, len(data), -1, -1).reshape(-1, M, 1)
        a = data.repeat(len(chunk))[:, None]
        winner = drol.route(candidates, a)
        nearest = candidates[torch.arange(len(a)), winner]
        losses.append((nearest - a).square().view(len(chunk), -1).mean(1))
    losses = torch.cat(losses)
    best = prototypes[losses <= losses.min() + 1e-6]
    in_interval = (best[:, :, None] >= 3 * torch.arange(M)) & (best[:, :, None] <= 3 * torch.arange(M) + 1)
    assert len(best) >= 1 and (in_interval.sum(1) == 1).all()
    both_in_one = (prototypes[:, 0] <= 1) & (prototypes[:, 1] <= 1)
    assert losses[both_in_one].min() > 2 * losses.min()


def clone(K, modes, steps, seed=0, fixed=None):
    """Trains the real actor on a mixture of modes (M, A) at one state by routed cloning, on fresh latents or fixed ones."""
    g = torch.Generator().manual_seed(seed)
    A = modes.shape[1]
    actor = drol.make_networks(1, A, (64, 64), g)["actor"]
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    for _ in range(steps):
        a = modes[torch.randint(len(modes), (256,), generator=g)] + 0.02 * torch.randn(256, A, generator=g)
        batch = {"observations": torch.zeros(256, 1), "actions": a}
        latents = drol.sample_latents(256, K, A, generator=g) if fixed is None else fixed.expand(256, -1, -1)
        loss, _ = drol.actor_loss(actor, NoCritic(), batch, latents, 1.0, "min", True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = {"latents": latents, "next_latents": latents[:, 0]}
    return actor, drol.diagnostics(actor, batch, noise) | drol.actor_loss(
        actor, NoCritic(), batch, latents, 1.0, "min", True)[1]


@pytest.mark.parametrize("seed", range(3))
def test_theory_training_covers_separated_modes(seed):
    """Statement 1 in training: three latents held fixed, three modes, and each ends on a mode of its own."""
    modes = torch.tensor([[-0.8], [0.0], [0.8]])
    fixed = torch.tensor([[[-0.9], [0.0], [0.9]]])
    actor, _ = clone(3, modes, 1500, seed, fixed)
    candidates = drol.sample_candidates(actor, torch.zeros(1, 1), fixed)[0]  # (3, 1)
    distance = (candidates - modes.T).abs()  # (candidate, mode)
    assert distance.min(0).values.max() < 0.05 and sorted(distance.argmin(1).tolist()) == [0, 1, 2]


def test_theory_tether_and_handoff():
    """Statement 2: the pull on the first candidate is 2(x - a) while it is the nearest, and then passes to the other."""
    a, other = 0.5, 0.2
    for x in torch.linspace(-1, 0.99, 40).tolist():
        latents = torch.tensor([[[x], [other]]], requires_grad=True)
        batch = {"observations": torch.zeros(1, 1), "actions": torch.tensor([[a]])}
        drol.actor_loss(lambda s, z: z, NoCritic(), batch, latents, 1.0, "min", True)[0].backward()
        nearest = abs(x - a) <= abs(other - a)
        expected = [2 * (x - a), 0.0] if nearest else [0.0, 2 * (other - a)]
        assert latents.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)
        tether = torch.tensor([[[x]]], requires_grad=True)  # alone, it is held whatever its distance
        drol.actor_loss(lambda s, z: z, NoCritic(), batch, tether, 1.0, "min", True)[0].backward()
        assert tether.grad.item() == pytest.approx(2 * (x - a), abs=1e-6)


def test_theory_coverage_of_all_modes():
    """Statement 3: Monte Carlo against 1 - sum_m (1 - p_m)^K, with candidates = latents, uniform in [-1, 1]."""
    low, high = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([-0.5, 0.2, 1.0])
    p, g, N = (high - low) / 2, torch.Generator().manual_seed(0), 20_000
    rates = []
    for K in (1, 2, 4, 8, 16, 32, 64):
        candidates = drol.sample_latents(N, K, 1, generator=g)
        covered = torch.ones(N, dtype=torch.bool)
        for left, right in zip(low, high, strict=True):  # the nearest to a neighbourhood's centre tells if any is in it
            winner = drol.route(candidates, ((left + right) / 2).expand(N, 1))
            nearest = candidates[torch.arange(N), winner, 0]
            covered &= (left <= nearest) & (nearest <= right)
        rate, bound = covered.float().mean().item(), 1 - ((1 - p) ** K).sum().item()
        # inclusion and exclusion over the three modes gives the exact probability
        exact = bound + sum((1 - p[i] - p[j]).item() ** K for i, j in ((0, 1), (0, 2), (1, 2))) - (1 - p.sum().item()) ** K
        exact = max(exact, 0.0)
        error = 4 * (exact * (1 - exact) / N) ** 0.5 + 1e-9
        assert rate >= bound - error and rate == pytest.approx(exact, abs=error)
        rates.append(rate)
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] > 0.99


def test_theory_spread_grows_and_cloning_improves_with_k():
    """Statement 4, with the real actor on eight modes in the plane."""
    angle = torch.arange(8) * torch.pi / 4
    modes = 0.8 * torch.stack([angle.cos(), angle.sin()], 1)
    results = [clone(K, modes, 600)[1] for K in (1, 2, 4, 8, 16)]
    spread = [result["candidate_spread"].item() for result in results]
    bc_loss = [result["bc_loss"].item() for result in results]
    assert spread == sorted(spread) and spread[0] == 0 and spread[-1] > 0.2, spread
    assert bc_loss == sorted(bc_loss, reverse=True) and bc_loss[-1] < bc_loss[0] / 5, bc_loss


def sections(program):
    """{banner: text} of a file, its docstring under ''."""
    parts = re.split(r"# -{20,} (.+)\n", Path(program.__file__).read_text())
    return dict(zip(["", *parts[1::2]], parts[::2]))


def test_the_two_files_share_all_but_the_algorithm():
    """Sections alike but for the algorithm, the settings' flags and presets, and the line that makes the flow."""
    ours, theirs = sections(drol), sections(fql)
    assert list(ours) == list(theirs) == ["", "settings", "data", "networks", "algorithm", "evaluation and records",
                                          "main"]
    for name in ("data", "evaluation and records", "main"):
        assert ours[name] == theirs[name], name
    assert ours[""].split("import copy")[1] == theirs[""].split("import copy")[1]
    flow = [line for line in theirs["networks"].splitlines() if line not in ours["networks"].splitlines()]
    assert len(flow) == 1 and 'networks["flow"]' in flow[0]
    for name in ("find_env", "resolve", "critic_loss", "update", "act", "UserError"):
        assert inspect.getsource(getattr(drol, name)) == inspect.getsource(getattr(fql, name)), name
    flags = lambda program: {field.name for field in program.fields(program.Args)}
    assert flags(drol) ^ flags(fql) == {"k", "bc_coef", "alpha", "flow_steps"}
    preset_row = re.compile(r'^[<>]     "[\w-]+": \(')
    diff = subprocess.run(["diff", drol.__file__, fql.__file__], capture_output=True, text=True).stdout
    lines = [line for line in diff.splitlines() if not preset_row.match(line)]
    assert sum(line[0] == "<" for line in lines) <= 130 and sum(line[0] == ">" for line in lines) <= 130
    for program in PROGRAMS.values():
        text = Path(program.__file__).read_text().splitlines()
        assert len(text) <= 640 and max(map(len, text)) <= 110


@every_program
def test_checkpoint_of_the_other_algorithm(program, data_dir, tmp_path):
    other = fql if program is drol else drol
    other.main(command(data_dir, tmp_path))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    with pytest.raises(program.UserError, match=f"it is {other.ALGORITHM}.py's"):
        program.load_policy(checkpoint)
    assert other.load_policy(checkpoint)(np.zeros(2)).shape == (2,)


def test_the_functions_that_people_copy_need_only_torch():
    names = ("sample_latents", "sample_candidates", "route", "critic_loss", "actor_loss")
    space = {"torch": torch}
    exec("\n\n".join(inspect.getsource(getattr(drol, name)) for name in names), space)
    networks = drol.make_networks(5, 3, (16,), torch.Generator().manual_seed(0))
    batch, g = random_batch(8, 5, 3), torch.Generator().manual_seed(0)
    latents = space["sample_latents"](8, 4, 3, generator=g)
    parts = (networks["actor"], networks["critic"])
    assert torch.equal(space["actor_loss"](*parts, batch, latents, 1.0, "min", True)[0],
                       drol.actor_loss(*parts, batch, latents, 1.0, "min", True)[0])
    arguments = (*parts, networks["target_critic"], batch, latents[:, 0], 0.99, "min")
    assert torch.equal(space["critic_loss"](*arguments)[0], drol.critic_loss(*arguments)[0])


# --------------------------------------------------------------------------------------------------- data


def test_collected_data_is_official_in_format_and_does_not_depend_on_jobs(tmp_path):
    for jobs in (1, 2):
        collect.main(["--env-id", "cube-single", "--episodes", "2", "--data-dir", str(tmp_path / str(jobs)),
                      "--seed", "5", "--jobs", str(jobs)])
    for name in ("cube-single-play-v0.npz", "cube-single-play-v0-val.npz"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    data = np.load(tmp_path / "1" / "cube-single-play-v0.npz")
    shapes = {"observations": (2002, 28), "actions": (2002, 5), "terminals": (2002,), "qpos": (2002, 21),
              "qvel": (2002, 20)}
    assert {key: data[key].shape for key in shapes} == shapes and set(data.files) == {*shapes, "source"}
    assert {str(data[key].dtype) for key in shapes} == {"float32", "bool"}
    assert np.flatnonzero(data["terminals"]).tolist() == [1000, 2001]
    assert "collected locally" in str(data["source"]) and "seed 5" in str(data["source"])
    assert abs(data["actions"]).max() <= 1 and data["actions"].std() > 0.1
    _, train, validation = ogbench.make_env_and_datasets("cube-single-play-singletask-v0", str(tmp_path / "1"))
    assert (len(train["rewards"]), len(validation["rewards"])) == (2000, 1000)
    assert set(np.unique(train["rewards"])) <= {-1.0, 0.0}


def test_collecting_again_keeps_what_is_there(tmp_path, capsys):
    args = ["--env-id", "pointmaze-medium", "--episodes", "1", "--data-dir", str(tmp_path), "--jobs", "1"]
    collect.main(args)
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    before = path.stat().st_mtime_ns
    collect.main(args)
    assert "already there" in capsys.readouterr().out and path.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="error: .*already holds other data"):
        collect.main([*args, "--seed", "1"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name.replace("v0", "v0-val"), path.name]


@pytest.mark.parametrize("kind, word", [("official", "an official dataset"), ("damaged", "is damaged")])
def test_collecting_never_replaces_other_data(tmp_path, kind, word):
    """Not even where only one of the two files is there."""
    args = ["--env-id", "pointmaze-medium", "--episodes", "1", "--data-dir", str(tmp_path), "--jobs", "1"]
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, observations=np.zeros((3, 2)))
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:50])
    before = path.read_bytes()
    with pytest.raises(SystemExit) as exit:
        collect.main(args)
    assert str(exit.value).startswith("error: ") and word in str(exit.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    path.unlink()
    collect.main(args)
    path.unlink()  # as a call that was cut off between the two files leaves it
    collect.main(args)
    assert path.exists()


@pytest.mark.parametrize("flags, words", [
    (["--env-id", "antmaze-large"], "trained walkers"),
    (["--env-id", "cubes"], "choose one of"),
    (["--env-id", "cube-single", "--episodes", "0"], "--episodes 0"),
    (["--env-id", "cube-single", "--data-dir", str(collect.CACHE)], "official"),
    (["--env-id", "cube-single", "--data-dir", f"{__file__}/data"], "cannot be written"),
])
def test_collect_refuses(flags, words):
    with pytest.raises(SystemExit) as exit:
        collect.main(flags)
    assert str(exit.value).startswith("error: ") and words in str(exit.value)


def test_goal_cells_are_not_straight_corridors():
    maze = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    free, goals = collect.free_and_goal_cells(maze)
    assert free == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)] and goals == [(1, 1), (1, 3), (3, 3)]


def test_scene_health_check():
    qpos = np.zeros((3, 20))
    qpos[:, 16] = 0.02
    assert collect.scene_is_healthy(qpos)
    for y, z, healthy in [(0.29, 0.02, False), (-0.3, 0.02, False), (-0.3, 0.07, True), (-0.3, 0.09, False)]:
        qpos[1, 15:17] = y, z
        assert collect.scene_is_healthy(qpos) == healthy


@every_program
def test_load_data(program, data_dir):
    env = program.find_env("pointmaze-medium")
    (train, validation), report = program.load_data(env, data_dir, torch.device("cpu"))
    raw = np.load(data_dir / "pointmaze-medium-navigate-v0.npz")
    keep = np.flatnonzero(~raw["terminals"])
    assert torch.equal(train["observations"], torch.from_numpy(raw["observations"][keep]))
    assert torch.equal(train["next_observations"], torch.from_numpy(raw["observations"][keep + 1]))
    assert train["actions"].abs().max() == np.float32(1 - 1e-5) and len(validation["rewards"]) == 1000
    goal = np.array([20.0, 20.0])  # task 1 of pointmaze-medium ends in cell (6, 6)
    success = np.linalg.norm(raw["qpos"][keep] - goal, axis=1) <= 1
    assert torch.equal(train["rewards"], torch.from_numpy(success - 1.0).float())
    assert torch.equal(train["masks"], torch.from_numpy(1.0 - success).float())
    assert (report["transitions"], report["episodes"], report["source"][:17]) == (2000, 2, "collected locally")
    assert report["terminal_share"] == pytest.approx(success.mean(), abs=1e-6)


@every_program
def test_batches_are_uniform_over_the_data(program):
    data = {"rewards": torch.arange(50.0), "masks": torch.arange(50.0)}
    batch = program.sample_batch(data, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(batch["rewards"], batch["masks"])
    counts = torch.bincount(batch["rewards"].long(), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 85.4  # chi-squared, 49 degrees of freedom, 0.1 %


def broken_copy(data_dir, folder, kind):
    """A copy of the data with one thing wrong in its training file."""
    for path in data_dir.glob("*.npz"):
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "pointmaze-medium-navigate-v0.npz"
    arrays = dict(np.load(path))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "missing key":
        del arrays["qpos"]
    elif kind == "nan":
        arrays["observations"][7, 0] = np.nan
    elif kind == "other shape":
        arrays["observations"] = np.tile(arrays["observations"], 2)
    if kind != "truncated":
        np.savez(path, **arrays)
    return path


@every_program
@pytest.mark.parametrize("kind, word", [("truncated", "zip"), ("missing key", "qpos"), ("nan", "NaN"),
                                        ("other shape", "(2000, 4)")])
def test_broken_dataset(program, capsys, data_dir, tmp_path, kind, word):
    (tmp_path / "data").mkdir()
    path = broken_copy(data_dir, tmp_path / "data", kind)
    before = path.read_bytes()
    failing(program, capsys, command(tmp_path / "data", tmp_path / "runs"), path, word, "delete it")
    assert path.read_bytes() == before
    broken_copy(data_dir, tmp_path / "data", "nothing")
    program.main(command(tmp_path / "data", tmp_path / "runs"))
    assert read(run_of(tmp_path / "runs") / "eval.csv")[0]["step"] == "20"


@every_program
def test_missing_dataset_without_network(program, capsys, data_dir, tmp_path, monkeypatch):
    def no_network(url):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    failing(program, capsys, command(tmp_path, tmp_path / "runs"), tmp_path / "pointmaze-medium-navigate-v0.npz",
            "pointmaze-medium-navigate-v0-val.npz", "python tools/collect.py --env-id pointmaze-medium", "no route")
    args = [*command(tmp_path, tmp_path / "runs"), "--env-id", "antmaze-large"]
    with pytest.raises(SystemExit) as exit:
        program.main(args)
    assert "antmaze-large-navigate-v0.npz" in str(exit.value) and "collect.py" not in str(exit.value)
    program.main(command(data_dir, tmp_path / "runs"))


# ---------------------------------------------------------------------------------------- runs and records


@every_program
def test_a_run_and_what_it_leaves(program, capsys, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path, "--snapshot-interval", 10, "--eval-interval", 10))
    out = capsys.readouterr().out
    run = run_of(tmp_path)
    assert re.fullmatch(rf"pointmaze-medium-navigate-task1/{program.ALGORITHM}(-k16)?-[0-9a-f]{{8}}/seed0",
                        str(run.relative_to(tmp_path)))
    assert [row["step"] for row in read(run / "eval.csv")] == ["10", "20"]
    assert [row["step"] for row in read(run / "train.csv")] == ["10", "20"]
    assert all(np.isfinite(float(value)) for row in read(run / "train.csv") for value in row.values())
    assert {"critic_loss", "actor_loss", "val_critic_loss", "mse", "seconds"} <= read(run / "train.csv")[0].keys()
    assert "seconds" not in read(run / "eval.csv")[0]
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["steps"] == 20 and config["data"]["transitions"] == 2000
    assert config["env"] == {"name": "pointmaze-medium-navigate-singletask-task1-v0", "task": 1, "preset": "pointmaze",
                             "dataset": "pointmaze-medium-navigate-v0"}
    rows = read(run / "train.csv")  # each number under its own name
    assert all(0 < float(row["bc_loss" if program is drol else "flow_loss"]) < 10 for row in rows)
    assert all(float(row["mse"]) > 0 and -1e3 < float(row["val_q"]) < 1e3 for row in rows)
    assert sorted(path.name for path in run.glob("snap*")) == ["snapshot10.pt", "snapshot20.pt"]
    assert_same_weights(run / "checkpoint.pt", run / "snapshot20.pt")
    assert list(run.glob("events*"))
    for text in ("task 1 of 5", "collected locally", "transitions         2000", "reward_min          -1", "finished",
                 "command line", "a published score is the mean over all 5", str(run)):
        assert text in out
    program.main(command(data_dir, tmp_path, "--snapshot-interval", 10, "--eval-interval", 10))
    assert "finished at update 20" in capsys.readouterr().out


@every_program
def test_the_same_seed_is_the_same_run_and_another_is_not(program, data_dir, tmp_path):
    runs = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        program.main(command(data_dir, tmp_path / folder, "--seed", seed))
        runs.append(run_of(tmp_path / folder))
    assert_same_weights(runs[0] / "checkpoint.pt", runs[1] / "checkpoint.pt")
    assert (runs[0] / "eval.csv").read_bytes() == (runs[1] / "eval.csv").read_bytes()
    with pytest.raises(AssertionError):
        assert_same_weights(runs[0] / "checkpoint.pt", runs[2] / "checkpoint.pt")


@every_program
def test_evaluating_and_logging_ten_times_as_often_changes_no_weight(program, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path / "a", "--eval-interval", 20, "--log-interval", 20))
    program.main(command(data_dir, tmp_path / "b", "--eval-interval", 2, "--log-interval", 2, "--eval-episodes", 1))
    assert len(read(run_of(tmp_path / "b") / "eval.csv")) == 10
    assert_same_weights(run_of(tmp_path / "a") / "checkpoint.pt", run_of(tmp_path / "b") / "checkpoint.pt")


@every_program
def test_more_steps_continue_a_finished_run(program, capsys, data_dir, tmp_path):
    for steps in (20, 40):
        program.main(command(data_dir, tmp_path / "a", "--steps", steps, "--eval-interval", 20))
    assert "resumed at update 20" in capsys.readouterr().out
    program.main(command(data_dir, tmp_path / "b", "--steps", 40, "--eval-interval", 20))
    a, b = run_of(tmp_path / "a"), run_of(tmp_path / "b")
    assert_same_weights(a / "checkpoint.pt", b / "checkpoint.pt")
    assert (a / "eval.csv").read_bytes() == (b / "eval.csv").read_bytes()
    without_clock = lambda run: [{**row, "seconds": ""} for row in read(run / "train.csv")]
    assert without_clock(a) == without_clock(b) and len(without_clock(a)) == 4


@every_program
def test_a_run_folder_belongs_to_its_settings_and_data(program, data_dir, tmp_path):
    def folders():
        return sorted(path.parent for path in tmp_path.glob("*/*/*/config.json"))

    program.main(command(data_dir, tmp_path))
    first = folders()
    program.main(command(data_dir, tmp_path, "--log-interval", 5))
    assert folders() == first
    program.main(command(data_dir, tmp_path, "--lr", "1e-4"))
    assert len(folders()) == 2
    (tmp_path / "other").mkdir()
    path = broken_copy(data_dir, tmp_path / "other", "nothing")
    arrays = dict(np.load(path))
    arrays["observations"][0, 0] += 1
    np.savez(path, **arrays)
    program.main(command(tmp_path / "other", tmp_path))
    assert len(folders()) == 3


@every_program
def test_overwrite_starts_anew(program, capsys, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path))
    run = run_of(tmp_path)
    (run / "notes.txt").write_text("old")
    program.main(command(data_dir, tmp_path, "--overwrite"))
    assert "resumed" not in capsys.readouterr().out and not (run / "notes.txt").exists()
    assert len(read(run / "eval.csv")) == 1


@every_program
def test_damaged_checkpoint(program, capsys, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    failing(program, capsys, command(data_dir, tmp_path, "--steps", 40), checkpoint, "--overwrite")
    assert checkpoint.read_bytes() == whole[: len(whole) // 2] and len(read(checkpoint.parent / "eval.csv")) == 1
    checkpoint.write_bytes(whole)
    program.main(command(data_dir, tmp_path, "--steps", 40))
    assert [row["step"] for row in read(checkpoint.parent / "eval.csv")] == ["20", "40"]


@every_program
def test_checkpoint_of_another_environment(program, capsys, data_dir, tmp_path):
    for task in (1, 2):
        program.main(command(data_dir, tmp_path / str(task), "--task", task))
    ours, others = run_of(tmp_path / "1") / "checkpoint.pt", run_of(tmp_path / "2") / "checkpoint.pt"
    whole = ours.read_bytes()
    ours.write_bytes(others.read_bytes())
    failing(program, capsys, command(data_dir, tmp_path / "1", "--task", 1), ours, "navigate-task2")
    assert ours.read_bytes() == others.read_bytes()
    ours.write_bytes(whole)
    program.main(command(data_dir, tmp_path / "1", "--task", 1))


@every_program
def test_checkpoint_of_another_device(program, capsys, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["identity"].endswith(" on cpu")
    torch.save(saved | {"identity": saved["identity"].replace("cpu", "cuda")}, checkpoint)
    failing(program, capsys, command(data_dir, tmp_path, "--steps", 40), checkpoint, "on cuda", "--overwrite")
    torch.save(saved, checkpoint)
    program.main(command(data_dir, tmp_path, "--steps", 40))


@every_program
def test_runs_that_start_together_download_once(program, data_dir, tmp_path, monkeypatch):
    """The download of a missing dataset happens under a lock that other runs wait for."""
    def download(names, folder):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(f"{folder}/{names[0]}.lock").acquire(timeout=0)
        for path in data_dir.glob("*.npz"):
            (Path(folder) / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(ogbench, "download_datasets", download)
    env = program.find_env("pointmaze-medium", 1)
    assert program.load_data(env, tmp_path / "new", torch.device("cpu"))[1]["transitions"] == 2000
    monkeypatch.setattr(ogbench, "download_datasets", None)  # and none where the files are there
    program.load_data(env, tmp_path / "new", torch.device("cpu"))


@every_program
def test_full_disk(program, capsys, data_dir, tmp_path, monkeypatch):
    def no_space(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    program.main(command(data_dir, tmp_path))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    before = checkpoint.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(torch, "save", no_space)
        failing(program, capsys, command(data_dir, tmp_path, "--steps", 40), "No space left on device")
    assert checkpoint.read_bytes() == before
    program.main(command(data_dir, tmp_path, "--steps", 40))


@every_program
def test_unwritable_run_folder(program, capsys, data_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    failing(program, capsys, command(data_dir, tmp_path / "file"), tmp_path / "file", "--run-dir")
    assert (tmp_path / "file").read_text() == "mine"
    program.main(command(data_dir, tmp_path / "folder"))


@every_program
def test_run_folder_in_use(program, capsys, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path))
    run = run_of(tmp_path)
    before = (run / "config.json").read_bytes()
    with filelock.FileLock(f"{run}.lock"):
        failing(program, capsys, command(data_dir, tmp_path, "--steps", 40, "--overwrite"), run, "in use")
    assert (run / "config.json").read_bytes() == before and (run / "checkpoint.pt").exists()
    program.main(command(data_dir, tmp_path, "--steps", 40))


@every_program
def test_track_without_and_with_wandb(program, capsys, data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    failing(program, capsys, command(data_dir, tmp_path, "--track"), "--track", "pip install wandb")
    wandb, calls = ModuleType("wandb"), []
    wandb.init = lambda **kwargs: calls.append(kwargs)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    program.main(command(data_dir, tmp_path, "--track"))
    assert calls[0]["sync_tensorboard"] and calls[0]["config"]["settings"]["steps"] == 20


@every_program
def test_load_policy(program, capsys, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    policy = program.load_policy(checkpoint, seed=1)
    observation = np.array([0.5, -0.5])
    action = policy(observation)
    assert action.shape == (2,) and action.dtype == np.float32 and np.abs(action).max() <= 1
    assert policy(np.tile(observation, (7, 1))).shape == (7, 2)
    assert np.array_equal(program.load_policy(checkpoint, seed=1)(observation), action)
    assert not np.array_equal(program.load_policy(checkpoint, seed=2)(observation), action)
    with pytest.raises(program.UserError, match="none.pt is missing.*No such file"):
        program.load_policy(tmp_path / "none.pt")


@every_program
def test_rollout_scores_a_checkpoint(program, data_dir, tmp_path):
    program.main(command(data_dir, tmp_path))
    checkpoint = run_of(tmp_path) / "checkpoint.pt"
    play = lambda *flags: subprocess.run([sys.executable, ROOT / "tools" / "rollout.py", *map(str, flags)],
                                         capture_output=True, text=True, cwd=tmp_path)
    result = play(checkpoint, "--episodes", 2)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:1] for line in lines] == [["episode"], ["episode"], ["mean"]]
    assert float(lines[0][-1]) <= 1000 and float(lines[2][-1]) > 0
    for flags, word in (([tmp_path / "none.pt"], "none.pt"), ([checkpoint, "--episodes", 0], "--episodes"),
                        ([checkpoint, "--video", "film.avi"], ".gif or .mp4")):
        result = play(*flags)
        assert result.returncode == 1 and result.stderr.startswith("error: ") and word in result.stderr
        assert result.stderr.count("\n") == 1


@every_program
def test_compile_without_a_compiler_goes_on_without(program, capsys, monkeypatch):
    def no_compiler(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert program.compile_losses(torch.device("cpu")) is program.losses
    assert capsys.readouterr().out.count("\n") == 1


@every_program
def test_compiled_runs_resume_to_the_same_numbers_and_keep_their_mode(program, data_dir, tmp_path):
    args = lambda folder, *flags: command(data_dir, tmp_path / folder, "--eval-interval", 20, *flags)
    program.main(args("whole", "--steps", 40, "--compile", "on"))
    program.main(args("parts", "--steps", 20, "--compile", "on"))
    program.main(args("parts", "--steps", 40, "--compile", "off"))  # goes on as it began
    whole, parts = run_of(tmp_path / "whole"), run_of(tmp_path / "parts")
    assert_same_weights(whole / "checkpoint.pt", parts / "checkpoint.pt")
    assert torch.load(parts / "checkpoint.pt", weights_only=True)["compiled"]
    program.main(args("eager", "--steps", 40))
    eager = weights(run_of(tmp_path / "eager") / "checkpoint.pt")
    compiled = weights(whole / "checkpoint.pt")
    assert any(not torch.equal(eager[key], compiled[key]) for key in eager)  # or the flag does nothing
    assert all(torch.allclose(eager[key], compiled[key], atol=1e-5) for key in eager)


@every_program
@pytest.mark.parametrize("flags, expected", [([], False), (["--steps", 20_000], True), (["--compile", "on"], True),
                                             (["--steps", 20_000, "--compile", "off"], False)])
def test_long_runs_on_the_cpu_are_compiled(program, data_dir, tmp_path, monkeypatch, flags, expected):
    class Reached(Exception):
        pass

    def compile_losses(device):
        raise Reached

    monkeypatch.setattr(program, "compile_losses", compile_losses)
    monkeypatch.setattr(program, "SummaryWriter", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    if expected:
        with pytest.raises(Reached):
            program.main(command(data_dir, tmp_path, *flags))
    else:
        assert program.main(command(data_dir, tmp_path, *flags)) == 130


@every_program
def test_a_card_that_torch_cannot_use_is_told(program, capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("torch can use this machine's card")
    monkeypatch.setattr(program.shutil, "which", lambda name: None)
    assert program.pick_device("auto").type == "cpu" and not capsys.readouterr().out
    monkeypatch.setattr(program.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert program.pick_device("auto").type == "cpu" and "WARNING" in capsys.readouterr().out
    assert program.pick_device("cpu").type == "cpu" and not capsys.readouterr().out


@every_program
def test_a_full_gpu_is_one_sentence(program, capsys, data_dir, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free.")

    monkeypatch.setattr(program, "train", full)
    failing(program, capsys, command(data_dir, tmp_path), "CUDA out of memory", "GPU 0")
    monkeypatch.setattr(program.torch, "zeros", full)
    with pytest.raises(program.UserError, match="--device auto does not work"):  # and does not go on on the CPU
        program.pick_device("auto")


@every_program
def test_the_cores_are_the_environments_while_they_play(program, data_dir, tmp_path, monkeypatch):
    threads, evaluate = [], program.evaluate
    monkeypatch.setattr(program, "evaluate", lambda *args: threads.append(torch.get_num_threads()) or evaluate(*args))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        program.main(command(data_dir, tmp_path, "--steps", 1, "--eval-episodes", 2, "--eval-envs", 2))
        assert (threads, torch.get_num_threads()) == ([1], 2)
        program.main(command(data_dir, tmp_path, "--steps", 1, "--eval-episodes", 2, "--eval-envs", 1))
        assert threads == [1, 2]  # one environment steps while torch does nothing
    finally:
        torch.set_num_threads(before)


@every_program
def test_evaluation_plays_whole_seeded_episodes(program):
    """Against a plain loop over the same environment: shares, seeds, returns, lengths, no dummy step."""
    name = "pointmaze-medium-navigate-singletask-task4-v0"
    to_goal = lambda observation: np.clip(np.array([-1.0, 0.0]) * np.ones_like(observation), -1, 1)
    envs = program.make_eval_envs(name, 3)
    result = program.evaluate(to_goal, envs, 4, (7, 100))
    again = program.evaluate(to_goal, envs, 4, (7, 100))
    assert program.evaluate(to_goal, envs, 4, (7, 100), stop=[2]) is None
    envs.close()
    single, episodes = program.make_env(name), []
    for i, episode in ((0, 0), (0, 1), (1, 0), (2, 0)):
        observation, _ = single.reset(seed=program.make_generator("cpu", 7, 100, i, episode).initial_seed())
        total, length, done = 0.0, 0, False
        while not done:
            observation, reward, terminated, truncated, info = single.step(to_goal(observation))
            total, length, done = total + reward, length + 1, terminated or truncated
        assert (info["return"], info["length"]) == (total, length)
        assert single.step(to_goal(observation))[4] is info  # it stands still
        episodes.append((info["score"], total, length))
    single.close()
    score, total, length = np.array(episodes).T
    expected = {"score": score.mean(), "return": total.mean(), "return_std": total.std(), "length": length.mean()}
    assert result == again == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------- D4RL


ANTMAZE, ADROIT = "antmaze-umaze-v2", "pen-human-v1"
RECORDED = np.load(ROOT / "testdata" / "d4rl_mujoco210.npz")  # of the original stack: MuJoCo 2.1.0, mujoco-py
RECORDED_TASKS = sorted({key.split("/")[0] for key in RECORDED.files})


def d4rl_env(name):
    from tools.d4rl_compat import D4RLEnv

    return D4RLEnv(name)


def write_d4rl_file(name, folder, episodes, length):
    """A file in D4RL's format of random actions in the task's environment. Every tenth step of AntMaze is at the goal."""
    import h5py

    env, rng = d4rl_env(name), np.random.default_rng(0)
    steps = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for step in range(length):
            action = rng.uniform(-1, 1, env.action_space.shape)
            following, reward, terminated, _, _ = env.step(action)
            goal = name == ANTMAZE and step % 10 == 9
            values = (observation, action, reward + goal, terminated or goal, step == length - 1 and not terminated)
            for key, value in zip(steps, values, strict=True):
                steps[key].append(value)
            observation = following
            if terminated:
                break
    with h5py.File(folder / env.dataset_file, "w") as file:
        for key, value in steps.items():
            file[key] = np.array(value, bool if key in ("terminals", "timeouts") else np.float32)
    return folder / env.dataset_file


@pytest.fixture(scope="session")
def d4rl_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d4rl")
    write_d4rl_file(ANTMAZE, folder, 4, 61)
    write_d4rl_file(ADROIT, folder, 10, 40)
    return folder


def d4rl_command(name, data_dir, run_dir, *flags):
    return ["--env-id", name, *command(data_dir, run_dir, *flags)[2:]]


@every_program
def test_d4rl_settings_are_the_published_ones(program):
    rows = published_rows(program.ALGORITHM, "d4rl")
    assert len(rows) == {"drol": 36, "fql": 18}[program.ALGORITHM]
    for row in rows:
        flags = ["--k", row["k"], "--bc-coef", row["bc_coef"]] if row["suite"] == "DROL*" else []
        args, env, origin = program.resolve(program.tyro.cli(program.Args, args=["--env-id", row["full_name"], *flags]))
        assert (env.name, env.task, args.task) == (row["full_name"], None, None)
        assert (args.q_agg, args.discount, args.steps) == (row["q_agg"], float(row["discount"]), int(row["steps"]))
        for name in ("k", "bc_coef", "alpha"):
            if row[name]:
                assert getattr(args, name) == float(row[name]), (row, name)
        assert origin["discount"] == f"published for {env.name}"
    assert program.find_env("antmaze-medium").preset == "antmaze-giant"  # OGBench's are not mixed up with D4RL's


@every_program
def test_wrong_d4rl_names_and_tasks(program, capsys, tmp_path):
    for flags, words in (([ADROIT, "--task", "1"], ["--task 1", ADROIT]), (["pen-human-v0"], [ADROIT]),
                         (["antmaze-large-play-v0"], ["antmaze-large-play-v2"])):
        failing(program, capsys, ["--env-id", *flags, "--run-dir", str(tmp_path)], *words)
    assert program.find_env(ADROIT).name == ADROIT


def start_from_recorded(env, name):
    """Puts the environment in the recorded first state; where things stand, which is not recorded, is fitted to O."""
    from d4rl.utils.quatmath import euler2quat
    from scipy.optimize import least_squares

    inner, model, state = env.inner, env.model, RECORDED[f"{name}/Q"][0]
    observe = getattr(inner, "get_obs", None) or inner._get_obs
    env.reset(seed=0)
    inner.set_state(state[: model.nq], state[model.nq :])

    def place(x):
        if "pen" in name:
            model.body_quat[inner.target_obj_bid] = euler2quat([*x, 0])
        elif "door" in name:
            model.body_pos[inner.door_bid] = x
        elif "hammer" in name:
            model.body_pos[model.body_name2id("nail_board"), 2] = x[0]
        else:
            model.body_pos[inner.obj_bid, :2], model.site_pos[inner.target_obj_sid] = x[:2], x[2:]
        inner.sim.forward()
        return observe() - RECORDED[f"{name}/O"][0]

    if "antmaze" not in name:
        guess = {"pen": [0.0] * 2, "door": [-0.25, 0.3, 0.3], "hammer": [0.2], "relocate": [0.0] * 5}[name.split("-")[0]]
        place(least_squares(place, guess, xtol=1e-15, ftol=1e-15, gtol=1e-15).x)
    assert np.abs(observe() - RECORDED[f"{name}/O"][0]).max() < 1e-12


@pytest.mark.parametrize("name", RECORDED_TASKS)
def test_d4rl_replay_of_the_original_stack(name):
    """Same start, same actions: the next observation, the rewards, the ends, the spaces."""
    env = d4rl_env(name)
    start_from_recorded(env, name)
    O, A, R, D = (RECORDED[f"{name}/{key}"] for key in "OARD")
    assert env.observation_space.shape == O.shape[1:] and env.action_space.shape == A.shape[1:]
    assert env.action_space.low.min() == -1 and env.action_space.high.max() == 1
    if "antmaze" in name:
        env.inner.set_target((100, 100))  # out of the way, as in the recording
    observations, rewards, ends, truncations, _ = zip(*[env.step(action) for action in A], strict=True)
    assert np.abs(observations[0] - O[1]).max() < (3e-3 if "antmaze" in name else 1e-9)
    if "pen" in name:  # the pen falls chaotically, so that only the beginning can be compared
        assert np.allclose(rewards[:10], R[:10], atol=0.02) and not any(ends[:10])
        assert True in ends and abs(ends.index(True) - D.argmax()) <= 5
    else:
        assert sum(rewards) == pytest.approx(R.sum(), rel=1e-4) and list(ends) == D.tolist()
    assert truncations[-1] == (name == ADROIT and not ends[-1])  # 100 steps are pen's limit


@pytest.mark.parametrize("name, limit", [(ANTMAZE, 700), ("antmaze-large-play-v2", 1000), (ADROIT, 100),
                                         ("door-human-v1", 200), ("hammer-human-v1", 200), ("relocate-human-v1", 200)])
def test_d4rl_time_limits_truncate(name, limit):
    env = d4rl_env(name)
    env.reset(seed=0)
    if name == ADROIT:
        env.inner.step = lambda action: (np.zeros(45), 0.0, False, {})  # a pen that is never dropped
    results = [env.step(np.zeros(env.action_space.shape)) for _ in range(limit)]
    assert [truncated for _, _, _, truncated, _ in results] == [False] * (limit - 1) + [True]
    assert not any(terminated for _, _, terminated, _, _ in results)
    env.reset(seed=0)
    env.env._elapsed_steps = limit - 1
    env.inner.step = lambda action: (np.zeros(env.observation_space.shape), 1.0, True, {})
    assert env.step(np.zeros(env.action_space.shape))[1:4] == (1.0, True, False)  # an end at the limit is an end


def test_antmaze_resets_and_goals_are_d4rls(capsys):
    """200 resets: the ant near the maze's first cell, a goal in its last cell drawn anew each time, and the end there."""
    env = d4rl_env(ANTMAZE)
    inner, observations, goals = env.inner, [], []
    for seed in range(200):
        observations.append(env.reset(seed=seed)[0])
        goals.append(inner.target_goal)
    observations, goals = np.array(observations), np.array(goals)
    assert np.array_equal(env.reset(seed=7)[0], observations[7]) and np.array_equal(inner.target_goal, goals[7])
    assert len(np.unique(goals, axis=0)) == 200
    # the goal's cell is (3, 1) at (0, 8), to which D4RL adds uniform noise of 0 to 1 and of 0 to 0.5
    assert (goals >= [0, 8]).all() and (goals <= [1.5, 9.5]).all() and np.ptp(goals, axis=0).min() > 1.2
    noise = observations[:, :15] - inner.init_qpos[:15]
    orientation = observations[:, 3:7]
    assert np.allclose(np.linalg.norm(orientation, axis=1), 1)
    joints = np.delete(noise, slice(3, 7), axis=1)
    assert np.abs(joints).max() <= 0.1 and np.ptp(joints, axis=0).min() > 0.18  # uniform in [-0.1, 0.1]
    assert observations[:, 15:].std() == pytest.approx(0.1, rel=0.05)  # velocities are normal
    for name in RECORDED_TASKS[:3]:
        first = RECORDED[f"{name}/O"][0]
        assert (first[:15] >= observations[:, :15].min(0) - 0.01).all()
        assert (first[:15] <= observations[:, :15].max(0) + 0.01).all() and np.abs(first[15:]).max() < 0.5
    env.reset(seed=0)
    inner.set_xy(np.array(inner.target_goal) + [0.3, 0])
    _, reward, terminated, truncated, _ = env.step(np.zeros(8))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert env.get_normalized_score(1.0) == 1


@pytest.mark.parametrize("name, tolerance", [("pen-human-v1", 3), ("door-human-v1", 0.1), ("hammer-human-v1", 0.1),
                                             ("relocate-human-v1", 0.1)])
def test_a_random_policy_scores_d4rls_random_reference(name, tolerance):
    """The normalised score x 100 of uniformly random actions is 0 within noise (pen's is large); of no reward it is not."""
    env, rng, returns = drol.make_env(name), np.random.default_rng(0), []
    assert abs(env.unwrapped.get_normalized_score(0.0)) * 100 > tolerance
    for seed in range(100 if "pen" in name else 20):
        env.reset(seed=seed)
        info = {}
        while not info:
            *_, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        returns.append(info["score"])
    assert abs(np.mean(returns)) < tolerance, np.mean(returns)


def test_ogbench_and_d4rl_run_in_one_process():
    assert np.__version__ >= "2" and gymnasium.__version__ >= "1"
    for name in ("pointmaze-medium-navigate-singletask-task1-v0", ANTMAZE, ADROIT):
        env = drol.make_env(name)
        observation, _ = env.reset(seed=0)
        again, _ = env.reset(seed=0)
        assert np.array_equal(observation, again) and env.step(env.action_space.sample())[0].shape == again.shape


@pytest.mark.parametrize("mujoco_py, simulator", [
    ("raise Exception('You appear to be missing MuJoCo.')", r"mujoco 3\..* in mujoco_py's place"),
    ("from stand_in import *\n__version__ = '2.1.2.14'", "mujoco_py 2.1.2.14"),
])
def test_a_real_mujoco_py_is_used_and_a_broken_one_is_not(tmp_path, mujoco_py, simulator):
    """With a module of that name on the path, made of the stand-in's parts, in a process of its own."""
    (tmp_path / "mujoco_py.py").write_text(mujoco_py)
    (tmp_path / "stand_in.py").write_text(
        "import ast, sys\nfrom pathlib import Path\n"
        f"code = Path({str(ROOT / 'tools' / 'd4rl_compat.py')!r}).read_text().split('def import_d4rl')[0]\n"
        "exec(code)\nget_version = lambda: '2.1'\nMjViewer = None\n")
    code = ("from tools import d4rl_compat as c; import sys; e = c.D4RLEnv('pen-human-v1'); e.reset(seed=0);"
            "print(sys.modules['mujoco_py'].__dict__.get('__file__')); print(e.SIMULATOR)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert result.returncode == 0 and result.stderr == "", result.stderr
    file, name = result.stdout.splitlines()
    assert re.fullmatch(simulator, name)
    assert file == (str(tmp_path / "mujoco_py.py") if name.startswith("mujoco_py ") else "None")


@every_program
def test_without_d4rl_the_install_command_is_told(program, capsys, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tools.d4rl_compat", raising=False)
    monkeypatch.delattr(sys.modules["tools"], "d4rl_compat", raising=False)
    monkeypatch.setitem(sys.modules, "gym", None)  # as where it is not installed
    failing(program, capsys, ["--env-id", ADROIT, "--data-dir", str(tmp_path), "--run-dir", str(tmp_path)],
            "pip install --no-deps -r requirements-d4rl.txt")
    assert (ROOT / "requirements-d4rl.txt").exists()


@pytest.mark.parametrize("name", [ANTMAZE, ADROIT])
def test_d4rl_data_is_that_of_d4rls_own_function(d4rl_dir, name):
    import d4rl
    import gym

    env = drol.find_env(name)
    (data,), report = drol.load_data(env, d4rl_dir, torch.device("cpu"))
    raw = gym.make(name)
    theirs = d4rl.qlearning_dataset(raw, dataset=raw.get_dataset(report["path"]))
    for key in ("observations", "next_observations"):
        assert np.array_equal(data[key], theirs[key])
    assert np.abs(data["actions"].numpy() - np.clip(theirs["actions"], -1 + 1e-5, 1 - 1e-5)).max() == 0
    assert np.array_equal(data["rewards"], theirs["rewards"] - (name == ANTMAZE))
    assert np.array_equal(data["masks"], 1 - theirs["terminals"])
    episodes, transitions = {ANTMAZE: (4, 240), ADROIT: (10, len(theirs["rewards"]))}[name]
    assert (report["episodes"], report["transitions"], report["validation"]) == (episodes, transitions, 0)
    assert report["terminal_share"] == pytest.approx(theirs["terminals"].mean(), abs=1e-6) and report["terminal_share"] > 0
    if name == ANTMAZE:
        assert (report["reward_min"], report["reward_max"]) == (-1, 0)


@every_program
@pytest.mark.parametrize("name", [ANTMAZE, ADROIT])
def test_d4rl_trains_evaluates_and_resumes(program, capsys, d4rl_dir, tmp_path, name):
    train = lambda folder, *flags: program.main(d4rl_command(name, d4rl_dir, tmp_path / folder, *flags))
    train("whole", "--steps", 40, "--eval-interval", 20)
    out = capsys.readouterr().out
    assert "one task;" in out and "normalised return x 100" in out and "in mujoco_py's place" in out
    assert "Target Goal" not in out and max(map(len, out.replace(str(d4rl_dir), "").splitlines())) <= 200
    train("parts", "--steps", 20, "--eval-interval", 20)
    train("parts", "--steps", 40, "--eval-interval", 20)
    assert "resumed at update 20" in capsys.readouterr().out
    whole, parts = run_of(tmp_path / "whole"), run_of(tmp_path / "parts")
    assert whole.parts[-3] == name
    assert_same_weights(whole / "checkpoint.pt", parts / "checkpoint.pt")
    assert (whole / "eval.csv").read_bytes() == (parts / "eval.csv").read_bytes()
    rows = read(whole / "eval.csv")
    assert len(rows) == 2
    for row in rows:  # the score is the normalised return
        expected = d4rl_env(name).get_normalized_score(float(row["return"])) * 100
        assert float(row["score"]) == pytest.approx(expected, abs=1e-9)
        assert name == ADROIT or float(row["length"]) == 700
    last = rows[-1]["score"]
    assert f"score {float(last):.1f}, normalised return x 100, the mean of 1 evaluation" in out
    assert json.loads((whole / "config.json").read_text())["data"]["simulator"].startswith("mujoco 3")


@every_program
def test_d4rl_dataset_missing_or_broken(program, capsys, d4rl_dir, tmp_path, monkeypatch):
    def unreachable(url, path):
        Path(path).write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    file = d4rl_env(ADROIT).dataset_file
    assert file == "pen-human-v1.hdf5"
    args = d4rl_command(ADROIT, tmp_path, tmp_path / "runs")
    with monkeypatch.context() as context:
        context.setattr("urllib.request.urlretrieve", unreachable)
        failing(program, capsys, args, tmp_path / file, "no route to host", f"put {file} there")
    assert not (tmp_path / file).exists()
    with monkeypatch.context() as context:
        context.setattr("urllib.request.urlretrieve", lambda url, path: Path(path).write_bytes(b"broken"))
        failing(program, capsys, args, tmp_path / file, "delete it if it is damaged")
    whole = (d4rl_dir / file).read_bytes()
    for content, word in ((whole[: len(whole) // 2], "damaged"), (whole.replace(b"timeouts", b"timeless"), "timeouts")):
        (tmp_path / file).write_bytes(content)
        failing(program, capsys, args, tmp_path / file, word)
    (tmp_path / file).unlink()
    monkeypatch.setattr("urllib.request.urlretrieve", lambda url, path: Path(path).write_bytes(whole))
    program.main(args)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".hdf5", ".lock"]


@every_program
def test_the_simulator_is_part_of_a_runs_folder(program, d4rl_dir, tmp_path, monkeypatch):
    """A run never goes on on another simulator than the one that it was begun on."""
    from tools.d4rl_compat import D4RLEnv

    args = d4rl_command(ADROIT, d4rl_dir, tmp_path)
    program.main(args)
    monkeypatch.setattr(D4RLEnv, "SIMULATOR", "mujoco_py 2.1.2.14")
    program.main(args)
    assert len(list(tmp_path.glob("*/*/*/config.json"))) == 2


@every_program
@pytest.mark.parametrize("env_id, simulator, told", [
    (ANTMAZE, "mujoco 3.4.0", False), (ANTMAZE, "mujoco 3.5.1", True), (ANTMAZE, "mujoco 3.10.0", True),
    (ANTMAZE, "mujoco 10.0", True), (ANTMAZE, "mujoco_py 2.1.2.14", False), (ADROIT, "mujoco 4.0.0", False)])
def test_ants_on_newer_versions_of_mujoco_are_warned_of(program, capsys, d4rl_dir, tmp_path, monkeypatch, env_id,
                                                        simulator, told):
    from tools.d4rl_compat import D4RLEnv

    monkeypatch.setattr(D4RLEnv, "SIMULATOR", simulator)
    monkeypatch.setattr(program, "train", lambda *args: 0)
    program.main(d4rl_command(env_id, d4rl_dir, tmp_path))
    assert ("WARNING: MuJoCo 3.5 changed the ant's contacts" in capsys.readouterr().out) == told


def test_rollout_of_a_d4rl_checkpoint(d4rl_dir, tmp_path):
    drol.main(d4rl_command(ADROIT, d4rl_dir, tmp_path))
    play = [sys.executable, str(ROOT / "tools" / "rollout.py"), str(run_of(tmp_path) / "checkpoint.pt"), "--episodes", "2"]
    result = subprocess.run(play, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.splitlines()[-1].startswith("mean")
    (tmp_path / "gym.py").write_text("raise ImportError('no gym')")
    result = subprocess.run(play, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "pip install --no-deps -r requirements-d4rl.txt" in result.stderr


def test_importing_d4rl_makes_no_folder(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path / "none"), "D4RL_DATASET_DIR": str(tmp_path / "data")}
    code = "from tools.d4rl_compat import D4RLEnv; import os; D4RLEnv('antmaze-umaze-v2'); print(os.environ['D4RL_DATASET_DIR'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{tmp_path / 'data'}\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_cut_off_download_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    import http.client

    def cut_off(url, path):
        Path(path).write_bytes(b"half")
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr("urllib.request.urlretrieve", cut_off)
    with pytest.raises(OSError, match="IncompleteRead"):
        d4rl_env(ADROIT).download_datasets([ADROIT], tmp_path)
    assert list(tmp_path.iterdir()) == []


@every_program
@pytest.mark.parametrize("env_id, near", [("antmaze-large-play", "antmaze-large-play-v2"), ("cube-single-navigate", "cube-single"),
                                          ("cube-single-play-singletask-task9-v0", "cube-single")])
def test_names_of_nothing_are_told(program, env_id, near):
    with pytest.raises(program.UserError, match=f"unknown environment.*{near}"):
        program.find_env(env_id)
    assert program.find_env("antmaze-large-stitch").dataset == "antmaze-large-stitch-v0"


@every_program
def test_the_console_shows_nothing_of_d4rls(program, d4rl_dir, tmp_path):
    process = start(program, d4rl_command(ANTMAZE, d4rl_dir, tmp_path / "runs"), env=os.environ | {"TMPDIR": str(tmp_path)})
    out, err = process.communicate()
    assert process.returncode == 0 and err == "", err
    assert "Target" not in out and "Warning" not in out
    assert not list(tmp_path.glob("*.xml"))  # the maze's


# ----------------------------------------------------------------------------------------- whole processes


def start(program, args, **kwargs):
    return subprocess.Popen([sys.executable, program.__file__, *args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **kwargs)


def wait_for(condition, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


@every_program
def test_killed_three_times_at_random_and_resumed_is_the_uninterrupted_run(program, data_dir, tmp_path):
    args = lambda folder: command(data_dir, tmp_path / folder, "--steps", 1500, "--eval-interval", 300,
                                  "--checkpoint-interval", 50, "--log-interval", 25)
    program.main(args("whole"))
    rng, kills = random.Random(program.ALGORITHM), 0
    trained = lambda: [row for path in tmp_path.glob("killed/*/*/*/train.csv") for row in read(path)]
    while kills < 3:
        process = start(program, args("killed"))
        at = len(trained()) + 1
        wait_for(lambda: len(trained()) >= at or process.poll() is not None)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, (out, err)  # it had neither finished nor died by itself
        kills += 1
    process = start(program, args("killed"))
    out, err = process.communicate()
    assert process.returncode == 0 and "resumed at update" in out, err
    whole, killed = run_of(tmp_path / "whole"), run_of(tmp_path / "killed")
    assert_same_weights(whole / "checkpoint.pt", killed / "checkpoint.pt")
    assert (whole / "eval.csv").read_bytes() == (killed / "eval.csv").read_bytes()
    assert [row["step"] for row in read(killed / "train.csv")] == [str(step) for step in range(25, 1501, 25)]


@every_program
@pytest.mark.parametrize("number, during", [(signal.SIGINT, "training"), (signal.SIGTERM, "evaluation"),
                                            (signal.SIGINT, "start of evaluation"), (signal.SIGTERM, "start of evaluation")])
def test_signals_save_and_exit(program, data_dir, tmp_path, number, during):
    flags = ["--steps", 1_000_000] if during == "training" else ["--eval-episodes", 200]
    args = command(data_dir, tmp_path, "--checkpoint-interval", 1_000_000, *flags)
    process = start(program, args, start_new_session=True)
    wait_for(lambda: len([row for path in tmp_path.glob("*/*/*/train.csv") for row in read(path)]) >= 2)
    time.sleep({"training": 0, "start of evaluation": 0.7, "evaluation": 6}[during])
    os.killpg(process.pid, number)  # as a terminal and a cluster do: to every process of the group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "saved" in out, (out, err)
    assert "Traceback" not in err
    assert torch.load(run_of(tmp_path) / "checkpoint.pt", weights_only=True)["step"] >= 20


@every_program
def test_the_console_of_a_new_user(program, data_dir, tmp_path):
    """No traceback on a mistake, no warning of a library's, exit codes."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MUJOCO_GL")}
    process = start(program, command(data_dir, tmp_path), env=environment)
    out, err = process.communicate()
    assert process.returncode == 0 and err == "", err
    lines = out.replace(str(data_dir), "data").replace(str(tmp_path), "runs").splitlines()
    assert max(map(len, lines)) <= 100 and 35 <= len(lines) <= 45
    process = start(program, command(data_dir, tmp_path, "--task", 9), env=environment)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (1, "", "error: --task 9: give 1 to 5\n")


@every_program
def test_humanoidmaze_up_to_the_download(program, tmp_path):
    """The main command on the real environment, with a small dataset of random actions in the official format."""
    env = gymnasium.make("humanoidmaze-medium-v0", terminate_at_goal=False, max_episode_steps=101)
    rng = np.random.default_rng(0)
    steps = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
    for episode in range(3):
        observation, _ = env.reset(seed=episode)
        for step in range(101):
            action = rng.uniform(-1, 1, 21).astype(np.float32)
            following, _, _, _, info = env.step(action)
            for key, value in zip(steps, (observation, action, step == 100, info["prev_qpos"], info["prev_qvel"])):
                steps[key].append(value)
            observation = following
    env.close()
    arrays = {key: np.array(value, bool if key == "terminals" else np.float32) for key, value in steps.items()}
    arrays["qpos"][:50, :2] = 20.0  # the goal of task 1, so that the relabelling has something to find
    for suffix in ("", "-val"):
        np.savez_compressed(tmp_path / f"humanoidmaze-medium-navigate-v0{suffix}.npz", **arrays)
    flags = ["--k", "16"] if program is drol else []
    program.main(["--env-id", "humanoidmaze-medium", *flags, "--data-dir", str(tmp_path), "--steps", "4",
                  "--run-dir", str(tmp_path / "runs"), "--log-interval", "2", "--eval-episodes", "1"])
    run = run_of(tmp_path / "runs")
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["source"] == "not marked as collected" and config["data"]["transitions"] == 300
    assert config["data"]["terminal_share"] == pytest.approx(50 / 300, abs=1e-6)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["dims"] == (69, 21, (512, 512, 512, 512))
    (row,) = read(run / "eval.csv")
    assert (float(row["score"]), float(row["return"]), float(row["length"])) == (0, -2000, 2000)


# ------------------------------------------------------------------------------- run_all.sh and the figures


def run_all(*args, **kwargs):
    """run_all.sh with this Python in place of .venv's."""
    return subprocess.run(["bash", ROOT / "run_all.sh", *map(str, args)], capture_output=True, text=True,
                          env=os.environ | {"PYTHON": sys.executable} | kwargs)


def listed(*args):
    result = run_all(*args, "--list")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def resolved(line):
    """What a listed command trains, resolved by the program's own code: (settings as published_settings.csv has them, seed)."""
    python, file, *flags = shlex.split(line)
    program = {"drol.py": drol, "fql.py": fql}[file]
    args, env, _ = program.resolve(program.tyro.cli(program.Args, args=flags))
    return (program.ALGORITHM, env.name, getattr(args, "k", None), getattr(args, "bc_coef", None),
            getattr(args, "alpha", None), args.discount, args.q_agg, args.steps), args.seed


def test_the_suites_are_the_published_runs():
    """ogbench and d4rl: 1,472 commands for 8 seeds, each of which resolves to a row of published_settings.csv."""
    lines = listed("ogbench") + listed("d4rl")
    assert len(lines) == len(set(lines)) == 1472
    number = lambda value: float(value) if value else None
    rows = {(row["method"], row["full_name"], number(row["k"]), number(row["bc_coef"]), number(row["alpha"]),
             float(row["discount"]), row["q_agg"], int(row["steps"]))
            for row in read(ROOT / "testdata" / "published_settings.csv")}
    assert len(rows) == 184
    runs = [resolved(line) for line in lines]
    assert {settings for settings, _ in runs} == rows
    assert len(set(runs)) == 1472 and {seed for _, seed in runs} == set(range(8))
    counts = [len(listed(suite, "--methods", method, "--seeds", 1)) for suite in ("ogbench", "d4rl")
              for method in ("drol16", "drol16 drolstar", "fql")]
    assert counts == [50, 85, 50, 18, 31, 18]  # 68 of DROL(16), 48 more of DROL*, 68 of FQL


def test_the_sweeps_are_the_published_ones():
    sweep, scaling = ([resolved(line)[0] for line in listed(name, "--seeds", 1)] for name in ("ksweep", "scaling"))
    published = {(row["full_name"], row["bc_coef"]) for row in published_rows("drol", "ogbench") + published_rows("drol", "d4rl")
                 if row["suite"] == "DROL(16)"}
    assert {(name, f"{bc_coef:g}") for _, name, _, bc_coef, *_ in sweep + scaling} <= published
    swept = {"antmaze-giant": 3, "antmaze-large": 1, "antsoccer-arena": 4, "cube-double": 3, "cube-single": 1, "scene": 2,
             "humanoidmaze-large": 1, "humanoidmaze-medium": 1, "puzzle-3x3": 2, "puzzle-4x4": 1}
    names = {drol.find_env(family, task).name for family, task in swept.items()}
    names |= {name for name in drol.D4RL_PRESETS if "antmaze" in name or "expert" in name}
    assert len(names) == 20 and len(sweep) == 120
    assert {(name, k) for _, name, k, *_ in sweep} == {(name, k) for name in names for k in (1, 2, 4, 8, 16, 32)}
    tasks = {name.split("-singletask-")[0] + name[-9:-3] for _, name, *_ in scaling}
    assert tasks == {"antmaze-giant-navigate-task3", "cube-double-play-task3", "scene-play-task2"}
    assert len(scaling) == 3 * 7 and {k for _, _, k, *_ in scaling} == {1, 2, 4, 8, 16, 32, 64}
    everything = listed("all", "--seeds", 1)
    assert len(everything) == len(set(everything)) < 184 + 120 + 21  # equal runs of two suites are listed once


def test_the_local_suites():
    tuning, runs = ([resolved(line) for line in listed(name)] for name in ("local-tuning", "local"))
    published = {program: program.PRESETS["cube-single"][-1] for program in (drol, fql)}
    assert sorted((k or 0, bc_coef or alpha) for (_, _, k, bc_coef, alpha, *_), _ in tuning) == \
        [(0, published[fql] / 3), (0, published[fql]), (0, published[fql] * 10 / 3), (16, 3), (16, 10), (16, 30)]
    assert len(runs) == len(set(runs)) == 27
    both = {(name, k) for (_, name, k, *_), seed in runs if seed == 1} & {(name, k) for (_, name, k, *_), seed in runs if seed == 0}
    assert both == {("cube-single-play-singletask-task2-v0", k) for k in (1, 4, 16, 64, None)} \
        | {("scene-play-singletask-task1-v0", k) for k in (16, None)}
    cube, scene = ({k for (_, name, k, *_), seed in runs if name.startswith(family) and "task2" in name and seed == 0}
                   for family in ("cube", "scene"))
    assert cube == scene == {1, 2, 4, 8, 16, 32, 64, None}
    assert {settings[-1] for settings, _ in tuning} == {20_000} and {settings[-1] for settings, _ in runs} == {20_000, 40_000}
    assert all(line.endswith("--run-dir runs/local") for line in listed("local"))
    assert all(line.endswith("--run-dir runs/local-tuning") for line in listed("local-tuning"))
    assert all("--run-dir mine" in line for line in listed("local", "--run-dir", "mine"))


@pytest.mark.parametrize("args, word", [
    (["ogbench", "--seeds", "0"], "--seeds"), (["ogbench", "--families", "cubes"], "--families"),
    (["d4rl", "--bad"], "unknown option --bad"), (["d4rl", "--jobs"], "--jobs needs a value"),
    (["ogbench", "--families", "cube-single cubes"], "cubes"), (["ogbench", "--methods", "drol16 droll"], "droll"),
    (["ogbench", "--tasks", "7"], "--tasks"), (["d4rl", "--slurm", "", "--gpus", "0"], "leave --gpus")])
def test_run_all_refuses(args, word):
    result = run_all(*args, "--list") if args[-1] != "--jobs" else run_all(*args)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and word in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_local_collects_what_its_runs_need(tmp_path):
    """With a program that only notes its arguments in place of Python, and a variable of the environment that is not ours."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/used\n')
    program.chmod(0o755)
    run_all("local", "--families", "pointmaze", "--run-dir", tmp_path / "runs", PYTHON=str(program), seed="5")
    used = (tmp_path / "used").read_text().splitlines()
    assert used[0] == "tools/collect.py --env-id pointmaze-medium --episodes 100 --data-dir data"
    assert [line.split()[0] for line in used[1:]] == ["drol.py", "fql.py"]


@pytest.fixture(scope="session")
def cube_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cube")
    collect.main(["--env-id", "cube-single", "--episodes", "2", "--data-dir", str(folder), "--jobs", "2"])
    return folder


def small_suite(cube_dir, run_dir, *options, flags=()):
    return ["ogbench", "--families", "cube-single", "--run-dir", run_dir, *options, "--", "--data-dir", cube_dir, "--steps",
            300, "--eval-interval", 100, "--checkpoint-interval", 50, *SMALL, *flags]


@pytest.fixture(scope="session")
def suite_dir(cube_dir, tmp_path_factory):
    """Runs of DROL(16) and FQL on two tasks with two seeds, two at a time."""
    folder = tmp_path_factory.mktemp("suite")
    result = run_all(*small_suite(cube_dir, folder, "--tasks", "1 2", "--seeds", 2, "--jobs", 2))
    assert result.returncode == 0 and result.stdout.count("done: ") == 8, result
    return folder


def test_a_suite_runs_once(cube_dir, suite_dir):
    command = small_suite(cube_dir, suite_dir, "--tasks", "1 2", "--seeds", 2, "--jobs", 2)
    runs = sorted(suite_dir.glob("*/*/seed*/checkpoint.pt"))
    assert len(runs) == 8 and all(read(run.parent / "eval.csv")[-1]["step"] == "300" for run in runs)
    before = {path: path.stat().st_mtime_ns for path in suite_dir.rglob("*") if path.is_file()}
    result = run_all(*command)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")  # the second call does nothing
    assert before == {path: path.stat().st_mtime_ns for path in suite_dir.rglob("*") if path.is_file()}


def test_a_failing_run_is_told_and_does_not_stop_the_rest(cube_dir, tmp_path):
    result = run_all(*small_suite(cube_dir, tmp_path, "--tasks", "1", "--seeds", 1, flags=["--alpha", 30, "--steps", 20]))
    assert result.returncode == 1 and result.stdout.count("done: ") == 1  # drol.py has no --alpha, fql.py has
    failures = result.stdout.split("these failed")[1].splitlines()[1:]
    assert len(failures) == 1 and "drol.py" in failures[0]
    assert "alpha" in Path(failures[0].split("log: ")[1]).read_text()


def test_runs_are_spread_over_the_gpus(tmp_path):
    """With a program that only writes down which GPU it is given."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/bash\nsleep 1\necho $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS $* >>{tmp_path}/used\n"
                       f"echo finished at update\necho note\necho {tmp_path}\n")
    program.chmod(0o755)
    result = run_all("scaling", "--seeds", 1, "--families", "scene", "--jobs", 2, "--gpus", "3 5", "--run-dir", tmp_path,
                     PYTHON=str(program), OMP_NUM_THREADS="1")
    assert result.returncode == 0 and result.stdout.count("done: ") == 7
    used = [line.split() for line in (tmp_path / "used").read_text().splitlines()]
    gpus = [gpu for gpu, *_ in used]
    assert len(used) == 7 and set(gpus) == {"3", "5"} and min(gpus.count("3"), gpus.count("5")) >= 3
    assert {words[words.index("--k") + 1] for words in used} == {"1", "2", "4", "8", "16", "32", "64"}


def test_a_killed_run_and_a_stopped_suite(tmp_path):
    """A killed run is told and the rest goes on; SIGTERM to the suite ends its runs, which save, and nothing else starts."""
    program = tmp_path / "a program"
    program.write_text(f"#!/bin/bash\ntrap 'echo saved >>{tmp_path}/saved; exit 143' TERM\necho $$ >>{tmp_path}/pids\n"
                       "for i in $(seq 600); do sleep 0.1; done\n")
    program.chmod(0o755)
    pids = lambda: (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    suite = subprocess.Popen(["bash", ROOT / "run_all.sh", "scaling", "--seeds", "1", "--families", "scene", "--jobs", "2",
                              "--run-dir", tmp_path / "my runs"], env=os.environ | {"PYTHON": str(program)},
                             stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(pids()) == 2)
    os.kill(int(pids()[0]), signal.SIGKILL)
    wait_for(lambda: len(pids()) == 3)
    suite.send_signal(signal.SIGTERM)
    out, _ = suite.communicate(timeout=30)
    assert suite.returncode == 130 and "failed (137)" in out and "stopped; the same command goes on" in out, out
    assert (tmp_path / "saved").read_text() == "saved\n" * 2 and len(pids()) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids())
    assert len(list((tmp_path / "my runs" / "logs").glob("*.log"))) == 3


@pytest.mark.skipif(not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for name in
                            ("slurmctld", "slurmd", "sbatch", "munged")),
                    reason="Slurm is not installed: apt-get install slurmctld slurmd slurm-client munge")
def test_slurm_runs_a_suite_through_a_node_failure(cube_dir, tmp_path):
    """A job array on a real Slurm of one node, which fails in the middle: all runs end as local ones do."""
    folder, node = Path(tempfile.mkdtemp(dir="/tmp")), ["bash", ROOT / "tools" / "slurm_node.sh"]
    suite = lambda where, *options: small_suite(cube_dir, tmp_path / where, "--tasks", "1", "--seeds", 1, *options,
                                                flags=["--steps", 3000, "--eval-interval", 1000])
    folder.chmod(0o755)  # munge insists on it
    started = subprocess.run([*node, "start", folder], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"Slurm is installed and does not start here: {started.stderr}")
    slurm = {"SLURM_CONF": str(folder / "client.conf")}
    control = lambda *words: subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | slurm).stdout
    try:
        submitted = subprocess.Popen(["bash", str(ROOT / "run_all.sh"), *map(str, suite("array", "--slurm", "--wait"))],
                                     env=os.environ | slurm | {"PYTHON": sys.executable}, stdout=subprocess.PIPE, text=True)
        checkpoints = lambda: len(list((tmp_path / "array").glob("*/*/*/checkpoint.pt")))
        wait_for(lambda: checkpoints() == 2)
        control("scontrol", "update", f"nodename={os.uname().nodename.split('.')[0]}", "state=down", "reason=test")
        assert not any("finished" in path.read_text() for path in (tmp_path / "array" / "logs").glob("*.log"))
        out, _ = submitted.communicate(timeout=600)
        assert submitted.returncode == 0 and "Submitted batch job" in out
        assert "Restarts=1" in control("scontrol", "show", "job")
    finally:
        subprocess.run([*node, "stop", folder], check=True)
        shutil.rmtree(folder)
    logs = [path.read_text() for path in (tmp_path / "array" / "logs").glob("*.log")]
    assert len(logs) == 2 and all("resumed at update" in log and "finished at update 3,000" in log for log in logs)
    assert run_all(*suite("array")).stdout == ""  # and a later call has nothing left to do
    assert run_all(*suite("local", "--jobs", 2)).returncode == 0
    for theirs in (tmp_path / "local").glob("*/*/*/checkpoint.pt"):
        ours = tmp_path / "array" / theirs.relative_to(tmp_path / "local")
        assert_same_weights(ours, theirs)
        assert (ours.parent / "eval.csv").read_bytes() == (theirs.parent / "eval.csv").read_bytes()


def test_figures_of_a_suite(suite_dir, tmp_path, capsys):
    """Every number of the table against the runs' own files, and 'not run' for everything else."""
    with pytest.raises(SystemExit) as exit:
        figures.main(["--run-dir", str(suite_dir), "--out", str(tmp_path)])
    assert exit.value.code is None
    out = capsys.readouterr().out
    assert all(f"{name}: not run" in out for name in ("ksweep", "scaling", "runtime", "voronoi"))
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "results.md", "learning_curves.csv",
                                                          "learning_curves.png"}
    rows = read(tmp_path / "results.csv")
    assert len(rows) == 12 * 3
    for row in rows:
        if row["family"] != "cube-single":
            assert row["mean"] == row["iqm"] == row["seeds"] == row["condition"] == "not run"
            continue
        program = "fql" if row["method"] == "FQL" else "drol"
        curves = {path.parent.parts[-1]: [] for path in suite_dir.glob(f"*/{program}*/*/eval.csv")}
        for path in suite_dir.glob(f"*/{program}*/*/eval.csv"):
            curves[path.parent.parts[-1]].append(np.mean([float(point["score"]) for point in read(path)][-3:]))
        seeds = [np.mean(scores) for scores in curves.values()]
        assert (row["tasks"], row["seeds"], row["published"]) == ("2", "2", {"DROL(16)": "97", "DROL*": "98", "FQL": "96"}[
            row["method"]])
        assert float(row["mean"]) == pytest.approx(np.mean(seeds)) and float(row["std"]) == pytest.approx(np.std(seeds, ddof=1))
        assert "local data" in row["condition"] and "300 updates" in row["condition"]
    text = (tmp_path / "results.md").read_text()
    assert text.count("| not run | not run |") == 33 and "local data" in text
    curves = read(tmp_path / "learning_curves.csv")
    assert len(curves) == 2 * 2 * 3 and {row["seeds"] for row in curves} == {"2"}
    assert png_size(tmp_path / "learning_curves.png") > (500, 300)


def png_size(path):
    """Width and height of a PNG."""
    return tuple(int.from_bytes(path.read_bytes()[i : i + 4], "big") for i in (16, 20))


def made_up_run(folder, env_id, k, seed, scores, task=None, source="not marked as collected", fingerprint="abcdef", **flags):
    """A run folder with given scores at 100, 200, ... updates, and candidates that lie K / 10 apart in the last tenth."""
    args, env, origin = drol.resolve(drol.Args(env_id=env_id, task=task, k=k, seed=seed, steps=100 * len(scores), **flags))
    run = folder / env.name / f"drol-k{k}-{len(list(folder.glob('*/*')))}" / f"seed{seed}"
    run.mkdir(parents=True)
    config = {"algorithm": "drol", "env": dict(zip(env._fields[:4], env, strict=False)), "origin": origin,
              "settings": vars(args), "data": {"source": source, "fingerprint": fingerprint, "simulator": "mujoco 3.4.0"}}
    (run / "config.json").write_text(json.dumps(config, default=str))
    points = [f"{100 * (i + 1)},{score}" for i, score in enumerate(scores)]
    (run / "eval.csv").write_text("\n".join(["step,score", *points]))
    lines = [f"{step},{k / 10 + (step <= 180)},{1 / k + (step <= 180)},{k / 100}" for step in range(10, 210, 10)]
    (run / "train.csv").write_text("\n".join(["step,pairwise_distance,bc_loss,candidate_spread", *lines]))
    return run


def test_figures_statistics_by_hand(tmp_path, capsys):
    runs = tmp_path / "runs"
    for k, offset in ((1, 0), (16, 40), (64, 20)):
        for seed in range(4):
            made_up_run(runs, "cube-double", k, seed, [0, offset + seed**3, offset + seed**3 + 3, offset + seed**3 + 6], task=1)
    for seed in range(3):  # a second task of three of the seeds
        made_up_run(runs, "cube-double", 16, seed, [0, 90, 90, 90], task=2)
    unfinished = made_up_run(runs, "cube-double", 16, 9, [99], task=1) / "config.json"
    unfinished.write_text(unfinished.read_text().replace('"steps": 100', '"steps": 400'))
    again = made_up_run(runs, "scene", 16, 0, [1, 2, 3, 4, 5, 6], task=1) / "config.json"
    again.write_text(again.read_text().replace('"steps": 600', '"steps": 200'))  # called again with fewer updates
    made_up_run(runs, "cube-double-noisy", 16, 0, [7, 7, 7], task=1)
    made_up_run(runs, "cube-double", 16, 0, [70, 70, 70], task=1, eval_episodes=5)
    for task in (1, 2):  # a fingerprint includes the relabelling for the task; the two are of one family all the same
        made_up_run(runs, "cube-double", 16, 0, [70 + task] * 3, task=task, fingerprint=f"{task}bcdef",
                    source="collected locally: 3 episodes, seed 4, ogbench 1.2.2, mujoco 3.4.0")
    made_up_run(runs, "antmaze-umaze-v2", 16, 0, [10, 20, 60])
    made_up_run(runs, "pen-human-v1", 16, 0, [10, 20, 30])
    (made_up_run(runs, "pen-human-v1", 16, 1, [10]) / "config.json").write_text("{}")
    bench = tmp_path / "bench.csv"
    bench.write_text("method,update_ms,action_ms,device,batch_size,hidden_dims,observation_dim,action_dim\n"
                     "DROL K = 1,2.5,0.1,cpu,256,512 512,69,21\nFQL,3.5,0.1,cpu,256,512 512,69,21\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "voronoi.png").write_text("of an earlier call")
    with pytest.raises(SystemExit) as exit:
        figures.main(["--run-dir", str(runs), "--out", str(tmp_path / "out"), "--bench", str(bench)])
    out = capsys.readouterr().out
    assert exit.value.code is None and "voronoi: not run" in out and not (tmp_path / "out" / "voronoi.png").exists()
    assert "cube-double-play-task1: best K 16, published K* 64 (400 updates, seeds: 4)" in out
    assert re.search(r"left out: .*pen-human-v1.*seed1 cannot be read", out)
    table = read(tmp_path / "out" / "results.csv")
    cell = lambda family, method, condition: next(
        row for row in table if (row["family"], row["method"], row["condition"]) == (family, method, condition))
    row = cell("cube-double", "DROL(16)", "400 updates")  # seeds 0 to 2 have both tasks: 43, 44, 51 and 90
    means = [(43 + 90) / 2, (44 + 90) / 2, (51 + 90) / 2]
    assert float(row["mean"]) == pytest.approx(np.mean(means)) and float(row["std"]) == pytest.approx(np.std(means, ddof=1))
    assert float(row["iqm"]) == pytest.approx((44 + 51 + 90 + 90) / 4)  # the middle four of 43, 44, 51, 90, 90, 90
    assert 60 < float(row["iqm_low"]) < float(row["iqm"]) < float(row["iqm_high"]) < 77
    assert (row["seeds"], row["tasks"], row["published"]) == ("3", "2", "20")
    assert sum(int(row["unfinished"]) for row in table) == 1
    star = cell("cube-double", "DROL*", "400 updates")  # K* is 64: 23, 24, 31, 50
    assert float(star["mean"]) == pytest.approx(32) and float(star["iqm"]) == pytest.approx((24 + 31) / 2)
    assert cell("cube-double", "FQL", "not run")["mean"] == "not run"
    assert cell("cube-double", "DROL(16)", "300 updates, eval_episodes 5")["mean"] == "70.0"
    local = cell("cube-double", "DROL(16)", "300 updates, local data (3 episodes, seed 4)")
    assert (local["mean"], local["tasks"], local["which"]) == ("71.5", "2", "1, 2")
    assert cell("cube-double-noisy", "DROL(16)", "300 updates")["published"] == "not published"
    assert cell("scene", "DROL(16)", "600 updates")["mean"] == "5.0"  # what it was trained for, not what it was asked last
    assert cell("d4rl-antmaze", "DROL(16)", "300 updates")["mean"] == "60.0"  # D4RL's score is the last evaluation's
    assert cell("d4rl-adroit", "DROL(16)", "300 updates")["mean"] == "30.0"
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.count("| not run | not run |") == sum(row["mean"] == "not run" for row in table)
    assert "| d4rl-antmaze | DROL(16) | 60.0 | 60.0 |" in text  # one seed has no deviation and no interval
    assert "| cube-double | DROL* | 32.0 +- 12.5 | 27.5 [" in text
    sweep = read(tmp_path / "out" / "ksweep.csv")
    assert [(row["k"], float(row["mean"])) for row in sweep] == [("1", 12), ("16", 52), ("64", 32)]
    scaling = read(tmp_path / "out" / "scaling.csv")
    assert [float(row["pairwise_distance"]) for row in scaling] == pytest.approx([0.1, 1.6, 6.4])  # the last tenth's
    assert [float(row["bc_loss"]) for row in scaling] == pytest.approx([1, 1 / 16, 1 / 64])
    assert [float(row["bc_loss_std"]) for row in scaling] == [0, 0, 0]  # four equal seeds each
    assert [row["update_ms"] for row in read(tmp_path / "out" / "runtime.csv")] == ["2.5", "3.5"]
    with pytest.raises(SystemExit) as exit:
        figures.main(["--run-dir", str(runs), "--out", str(tmp_path / "some"), "--only", "ksweep", "results"])
    names = {path.name for path in (tmp_path / "some").iterdir()}
    assert exit.value.code is None and names == {"ksweep.csv", "ksweep.png", "results.csv", "results.md"}


def test_figures_hold_long_settings_and_order_k(tmp_path):
    """The settings of runs on two collected datasets, which are long and differ, leave room for the curves."""
    runs = tmp_path / "runs"
    for name in ("cube-single", "scene"):
        for k in (16, 1, 4):
            made_up_run(runs, name, k, 0, [1, 2, 3], task=1, hidden_dims=[128, 128, 128], eval_interval=5000, eval_episodes=25,
                        lr=0.001, tau=0.02, source=f"collected locally: {len(name)}", batch_size=100 + len(name))
    with warnings.catch_warnings(), pytest.raises(SystemExit) as exit:
        warnings.simplefilter("error")  # such as: constrained_layout not applied because axes sizes collapsed to zero
        figures.main(["--run-dir", str(runs), "--out", str(tmp_path), "--only", "learning_curves", "ksweep"])
    assert exit.value.code is None
    rows = read(tmp_path / "learning_curves.csv")
    names = [row["method"] for row in rows if row["task"] == "cube-single-play-task1" and row["step"] == "100"]
    assert names == ["DROL K = 1", "DROL K = 4", "DROL K = 16"]


def test_figures_of_seeds_without_a_common_evaluation(tmp_path):
    """One seed has been cut off after an evaluation that the other does not have: there is no mean to draw yet."""
    runs = tmp_path / "runs"
    made_up_run(runs, "scene", 1, 0, [1, 2], task=1)
    (made_up_run(runs, "scene", 1, 1, [1, 2], task=1) / "eval.csv").write_text("step,score\n50,5\n")
    made_up_run(runs, "cube-single", 1, 0, [3, 4], task=1)
    with pytest.raises(SystemExit) as exit:
        figures.main(["--run-dir", str(runs), "--out", str(tmp_path), "--only", "learning_curves"])
    assert exit.value.code is None
    assert [(row["task"], row["mean"]) for row in read(tmp_path / "learning_curves.csv")] == \
        [("cube-single-play-task1", "3.0"), ("cube-single-play-task1", "4.0")]


@pytest.mark.parametrize("args, word", [(["--run-dir", "none"], "there is no none"), (["--bench", "none.csv"], "none.csv"),
                                        (["--voronoi", "none"], "none")])
def test_figures_refuse(tmp_path, args, word):
    with pytest.raises(SystemExit) as exit:
        figures.main(["--run-dir", str(tmp_path), "--out", str(tmp_path / "out"), *args])
    assert str(exit.value).startswith("error: ") and word in str(exit.value)


def test_figures_voronoi_is_a_real_update(data_dir, tmp_path, capsys):
    args = command(data_dir, tmp_path / "runs", "--snapshot-interval", 10, "--k", 8, "--lr", "1e-3")
    drol.main(args)
    with pytest.raises(SystemExit) as exit:
        figures.main(["--run-dir", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert exit.value.code is None
    rows = read(tmp_path / "voronoi.csv")
    panels = {row["panel"]: [other for other in rows if other["panel"] == row["panel"]] for row in rows}
    assert 2 <= len(panels) <= 3 and all(len(panel) == 8 for panel in panels.values())
    # the same update by hand, from the snapshot as it lies on the disk
    settings, env, _ = drol.resolve(drol.tyro.cli(drol.Args, args=args))
    (data, _), _ = drol.load_data(env, data_dir, torch.device("cpu"))
    for title, panel in panels.items():
        saved = torch.load(run_of(tmp_path / "runs") / f"snapshot{panel[0]['updates']}.pt", weights_only=True)
        networks = drol.make_networks(*saved["dims"], torch.Generator())
        networks.load_state_dict(saved["networks"])
        optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3, fused=True)
        optimizer.load_state_dict(saved["optimizer"])
        generator, i = drol.make_generator("cpu", 0), int(panel[0]["state"])
        batch = drol.sample_batch(data, settings.batch_size, generator)
        noise = drol.sample_noise(settings.batch_size, 2, settings, generator)
        for moment in ("", "_after"):
            candidates = drol.sample_candidates(networks["actor"], batch["observations"], noise["latents"])[i]
            place = candidates - batch["actions"][i]  # two-dimensional actions: the plane is all, the action its origin
            assert np.allclose(place, [[float(row[f"x{moment}"]), float(row[f"y{moment}"])] for row in panel], atol=1e-6)
            distance = place.norm(dim=1)
            assert np.allclose(distance, [float(row[f"distance{moment}"]) for row in panel], atol=1e-6)
            winner = [row[f"winner_{moment.strip('_') or 'before'}"] for row in panel]
            assert winner.count("1") == 1 and winner.index("1") == distance.argmin()
            drol.update(networks, optimizer, batch, noise, settings)
        kept = [row["winner_before"] for row in panel] == [row["winner_after"] for row in panel]
        assert ("changes" not in title) if kept else ("stays" not in title)
    path = data_dir / "pointmaze-medium-navigate-v0.npz"  # its data gone
    moved = path.rename(tmp_path / "moved.npz")
    try:
        with pytest.raises(SystemExit) as exit:
            figures.main(["--run-dir", str(tmp_path / "runs"), "--out", str(tmp_path)])
    finally:
        moved.rename(path)
    assert exit.value.code == 1 and "give --data-dir" in capsys.readouterr().err


@pytest.mark.parametrize("k, actor_passes", [(1, 4), (8, 12), (None, 4)])
def test_bench_counts_and_times(k, actor_passes):
    """The floor's multiply-adds by hand for O = 6, A = 2, hidden 32 and 16; times are positive and the ratio is theirs."""
    args = bench.Args(observation_dim=6, action_dim=2, hidden_dims=(32, 16), batch_size=64, updates=5, device="cpu")
    row = bench.measure(args, k)
    actor, critic, flow = (i * 32 + 32 * 16 + 16 * o for i, o in ((8, 2), (8, 1), (9, 2)))
    flops = 2 * 64 * (actor_passes * actor + 12 * critic + (13 * flow if k is None else 0))
    assert float(row["floor_ms"]) == pytest.approx(flops / float(row["gflop_per_s"]) / 1e6, abs=1e-3)
    assert float(row["update_ms"]) > float(row["floor_ms"]) and 0 < float(row["action_ms"]) < 100
    assert row["method"] == ("FQL" if k is None else f"DROL K = {k}")


def test_bench_writes_what_the_figure_reads(tmp_path):
    command = ["--k", "2", "--no-fql", "--hidden-dims", "16", "--updates", "5", "--out", str(tmp_path / "bench.csv")]
    result = run_all("runtime", *command)
    assert result.returncode == 0 and "DROL K = 2" in result.stdout, result.stderr
    assert [row["method"] for row in read(tmp_path / "bench.csv")] == ["DROL K = 2"]
    result = run_all("figures", "--run-dir", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 0 and (tmp_path / "out" / "runtime.png").exists(), result.stderr
    assert run_all("runtime", "--k", "0").stderr.startswith("error: ")

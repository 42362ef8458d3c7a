"""Trains the released code and ours from many seeds, and measures both with one piece of code.

    git clone https://github.com/seohongpark/fql released_fql   # commit 719d044
    git clone https://github.com/muzhancun/DROL released_drol   # commit 7e669b0
    pip install jax==0.10.2 flax optax ml_collections distrax jaxtyping
    export PYTHONPATH=released_fql
    python -m results.reproduction.compare --algorithm fql --seeds 32
    python -m results.reproduction.compare --algorithm fql --seeds 3 --codes replay

replay is our code on the released code's initial weights, batches and noise. The networks are
small (SETTINGS), other settings are the published ones. Every final network is kept, as one of
ours, in the folder --networks. A finished run is a row of compare.csv and is not run again.
"""

import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

import gymnasium
import jax
import numpy as np
import pandas as pd
import torch
import tyro
from torch import nn

SETTINGS = {"hidden_dims": (256, 256, 256), "lr": 1e-3, "tau": 0.01, "device": "cpu"}
STATES, LATENTS = 8_192, 16  # of the fixed batch, and per state
LAYERS = {nn.Linear: ("Dense", "kernel"), nn.LayerNorm: ("LayerNorm", "scale")}  # Flax's names


@dataclass
class Args:
    algorithm: Literal["drol", "fql"]
    seeds: int = 16  # 0 to this
    codes: tuple[Literal["released", "ours", "replay"], ...] = ("released", "ours")
    env_id: str = "door-expert-v1"
    data_dir: str = "data/official-size"
    updates: int = 5_000
    episodes: int = 200  # a multiple of 20, which are played at once
    networks: Path = Path("networks")
    out: Path = Path("results/reproduction/compare.csv")


# -------------------- the released code
def make_agent(algorithm, settings, data):
    released = import_module(f"agents.{algorithm}")
    config = released.get_config()
    for name in ("bc_coef" if algorithm == "drol" else "alpha", "q_agg", "discount", "lr", "tau"):
        config[name] = getattr(settings, name)
    config.actor_hidden_dims = config.value_hidden_dims = settings.hidden_dims
    create = getattr(released, f"{algorithm.upper()}Agent").create
    return create(settings.seed, data["observations"][:1], data["actions"][:1], config)


def copy_layers(mlp, theirs, member=()):
    for kind, (name, scale) in LAYERS.items():
        layers = [layer for layer in mlp.layers if isinstance(layer, kind)]
        for i, layer in enumerate(layers):
            layer.weight.data = torch.tensor(theirs[f"{name}_{i}"][scale][member].T.copy())
            layer.bias.data = torch.tensor(theirs[f"{name}_{i}"]["bias"][member])


def convert(agent, networks):
    """Copies the released code's parameters into our networks."""
    params = jax.device_get(agent.network.params)
    copy_layers(networks["actor"], params["modules_actor_onestep_flow"]["mlp"])
    if "flow" in networks:
        copy_layers(networks["flow"], params["modules_actor_bc_flow"]["mlp"])
    for name in ("critic", "target_critic"):
        copy_layers(networks[name].q1, params[f"modules_{name}"]["value_net"], 0)
        copy_layers(networks[name].q2, params[f"modules_{name}"]["value_net"], 1)


@partial(jax.jit, static_argnums=(1, 2))
def released_noise(key, shape, k):
    """Its new key, and what its next update draws, by our names. k is 0 for FQL."""
    key, now = jax.random.split(key)
    _, actor_key, critic_key = jax.random.split(now, 3)
    _, next_key = jax.random.split(critic_key)
    if k:
        ball = partial(
            import_module("agents.drol").sample_uniform_in_hypersphere, R=shape[1] ** 0.5
        )
        _, z_key = jax.random.split(actor_key)
        candidate_z = ball(z_key, shape=(shape[0], k, shape[1]))
        return key, {"next_z": ball(next_key, shape=shape), "candidate_z": candidate_z}
    next_z = jax.random.normal(jax.random.split(next_key)[0], shape)
    rest, x_key, t_key = jax.random.split(actor_key, 3)
    x_0, t = jax.random.normal(x_key, shape), jax.random.uniform(t_key, (shape[0], 1))
    z = jax.random.normal(jax.random.split(rest)[1], shape)
    return key, {"next_z": next_z, "x_0": x_0, "t": t, "z": z}


# -------------------- training
def released_batches(settings, data, updates):
    rng = np.random.default_rng(settings.seed)
    for _ in range(updates):
        index = rng.integers(len(data["rewards"]), size=settings.batch_size)
        yield {name: value[index] for name, value in data.items()}


def our_numbers(ours, settings, data, updates):
    """The batch and the noise of each update, drawn as a run of drol.py or fql.py draws them."""
    batch_generator = ours.make_generator("cpu", settings.seed, 1)
    noise_generator = ours.make_generator("cpu", settings.seed, 2)
    for _ in range(updates):
        batch = ours.sample_batch(data, settings.batch_size, batch_generator)
        yield batch, ours.sample_noise(settings, batch["actions"].shape[1], noise_generator)


def released_numbers(key, settings, batches):
    """The same of the released code."""
    for batch in batches:
        key, noise = released_noise(key, batch["actions"].shape, getattr(settings, "k", 0))
        yield [{x: torch.tensor(np.asarray(y)) for x, y in z.items()} for z in (batch, noise)]


def train(ours, args, code, settings, data):
    """The final networks of a run."""
    dims = (data["observations"].shape[1], data["actions"].shape[1], settings.hidden_dims)
    networks = ours.make_networks(*dims, ours.make_generator("cpu", settings.seed, 0))
    numbers = our_numbers(ours, settings, data, args.updates)
    if code != "ours":
        arrays = {name: value.numpy() for name, value in data.items()}
        agent = make_agent(args.algorithm, settings, arrays)
        batches = released_batches(settings, arrays, args.updates)
        if code == "released":
            for batch in batches:
                agent, _ = agent.update(batch)
        convert(agent, networks)
        numbers = released_numbers(agent.rng, settings, batches)  # none is left for released
    optimizer = torch.optim.Adam(networks.parameters(), lr=settings.lr, fused=True)
    loss_fn = torch.compile(ours.total_loss)
    for batch, noise in numbers:
        ours.update(networks, optimizer, batch, noise, settings, loss_fn)
    return networks


# -------------------- measuring
@torch.no_grad()
def measure(ours, networks, settings, data, envs, args):
    """The score, and statistics on the same states, actions and latents for every network."""
    generator = ours.make_generator("cpu", 0)
    batch = ours.sample_batch(data, STATES, generator)
    s, a = batch["observations"], batch["actions"]  # (N, O), (N, A)
    z = ours.sample_latents(STATES, LATENTS, a.shape[1], generator=generator)
    raw = networks["actor"](s[:, None].expand(-1, LATENTS, -1), z)  # (N, LATENTS, A)
    actions = raw.clamp(-1, 1)
    squares = (actions - a[:, None]).square().mean(-1)  # (N, LATENTS)
    q = networks["critic"](s, a)  # (2, N)
    next_z = ours.sample_latents(STATES, a.shape[1], generator=generator)
    three = (networks[name] for name in ("actor", "critic", "target_critic"))
    td_loss, _ = ours.critic_loss(*three, batch, next_z, settings.discount, settings.q_agg)
    row = {
        "td_loss": td_loss,
        "q_data": q.mean(),
        "q_gain": networks["critic"](s, actions[:, 0]).mean() - q.mean(),
        "critic_gap": (q[0] - q[1]).abs().mean(),
        "mse": squares.mean(),
        "nearest": squares.amin(1).mean(),
        "spread": actions.var(1, correction=0).mean(),
    }
    if "flow" in networks:
        end = ours.flow_action(networks["flow"], s, z[:, 0], settings.flow_steps)
        row["distill"] = (raw[:, 0] - end).square().mean()
    generator = ours.make_generator("cpu", settings.seed, 3)
    policy = partial(ours.act, networks["actor"], action_dim=a.shape[1], generator=generator)
    result = ours.evaluate(policy, envs, args.episodes, (settings.seed, args.updates))
    return result | {name: value.item() for name, value in row.items()}


COLUMNS = ["algorithm", "code", "seed", "updates", "score", "return", "q_data"]
COLUMNS += ["q_gain", "td_loss", "critic_gap", "mse", "nearest", "spread", "distill"]
COLUMNS += ["train_s", "measure_s"]


def main(args):
    torch.set_num_threads(1)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # no Box warnings
    args.networks.mkdir(parents=True, exist_ok=True)
    ours = import_module(args.algorithm)
    env_name = ours.resolve(ours.Args(env_id=args.env_id))[0].env_id
    data = ours.load_data(env_name, args.data_dir)
    envs = gymnasium.vector.SyncVectorEnv([partial(ours.make_env, env_name)] * 20)
    for seed in range(args.seeds):
        for code in args.codes:
            run = [args.algorithm, code, seed, args.updates]
            done = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=COLUMNS)
            if (done[COLUMNS[:4]] == run).all(axis=1).any():
                continue
            settings, _ = ours.resolve(ours.Args(env_id=args.env_id, seed=seed, **SETTINGS))
            start = time.perf_counter()
            networks = train(ours, args, code, settings, data)
            row = {"train_s": time.perf_counter() - start}
            torch.save(networks.state_dict(), args.networks / ("-".join(map(str, run)) + ".pt"))
            start = time.perf_counter()
            row |= measure(ours, networks, settings, data, envs, args)
            row |= {"measure_s": time.perf_counter() - start}
            row |= dict(zip(COLUMNS[:4], run, strict=True))
            row = pd.DataFrame([row]).reindex(columns=COLUMNS)
            row.to_csv(args.out, mode="a", header=not args.out.exists(), index=False)
            print(row.to_string(), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))

r"""The released JAX FQL on the data of the runs here, evaluated as they are.

    git clone https://github.com/seohongpark/fql released_fql
    git -C released_fql checkout 719d044
    pip install jax==0.10.2 flax optax ml_collections distrax
    python results/reproduction/released_fql.py --repository released_fql --env-id door-expert-v1 \
        --seed 1 --steps 5000 --eval-interval 5000 --out released/seed1

Writes config.json, eval.csv and train.csv, what the update returns every 5,000 updates. Batches are
drawn here, by NumPy. With --ours, fql.py computes the losses, the updates and the actions, from the
same initial weights, batches, noise and latents.
"""

import csv
import dataclasses
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax
import numpy as np
import torch
import tyro

sys.path.append(str(Path(__file__).parents[2]))

import fql as ours  # noqa: E402
from test_drol import recorded_parameters  # noqa: E402


@dataclasses.dataclass
class Args:
    repository: Path
    env_id: str
    data_dir: Path = Path("data/official-size")
    out: Path = Path("released")
    seed: int = 0
    steps: int = 20_000
    eval_interval: int = 10_000
    eval_episodes: int = 50
    ours: bool = False


class NeverStop:
    """What ours.evaluate asks whether to stop."""

    def check(self):
        pass


NAMES = {
    "actor": "modules_actor_onestep_flow",
    "flow": "modules_actor_bc_flow",
    "critic": "modules_critic",
    "target_critic": "modules_target_critic",
}


class Ours:
    """fql.py in place of a new released agent, with its interface and its random numbers."""

    def __init__(self, agent, config):
        self.rng, self.action_dim = agent.rng, config["action_dim"]
        hidden_dims = config["actor_hidden_dims"]
        self.networks = ours.make_networks(
            *config["ob_dims"], self.action_dim, hidden_dims, torch.Generator()
        )
        weights = {}
        for name, theirs in NAMES.items():
            (layers,) = agent.network.params[theirs].values()
            for layer, values in layers.items():
                weights |= {f"/{name}/{layer}/{key}": np.array(x) for key, x in values.items()}
        for parameter, value in recorded_parameters(self.networks, weights, "").items():
            parameter.data.copy_(value)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=config["lr"], fused=True)
        fields = ("alpha", "q_agg", "discount", "tau", "flow_steps")
        self.settings = SimpleNamespace(
            **{name: config[name] for name in fields}, actor_q_agg="mean", normalize_q=False
        )
        self.losses = torch.compile(ours.losses)
        self.draw = jax.jit(self.noise, static_argnums=1)

    def noise(self, rng, batch_size):
        """The next key, and what the released update draws from this one."""
        shape = (batch_size, self.action_dim)
        following, rng = jax.random.split(rng)  # update
        _, actor_rng, critic_rng = jax.random.split(rng, 3)  # total_loss
        sample_rng = jax.random.split(critic_rng)[1]  # critic_loss
        rng, x_rng, t_rng = jax.random.split(actor_rng, 3)  # actor_loss
        return following, {
            "next_latents": jax.random.normal(jax.random.split(sample_rng)[0], shape),
            "x_0": jax.random.normal(x_rng, shape),
            "t": jax.random.uniform(t_rng, (batch_size, 1)),
            "latents": jax.random.normal(jax.random.split(rng)[1], shape),
        }

    def update(self, batch):
        self.rng, noise = self.draw(self.rng, len(batch["rewards"]))
        noise = {key: torch.tensor(np.array(x)) for key, x in noise.items()}
        batch = {key: torch.tensor(x) for key, x in batch.items()}
        return self, ours.update(
            self.networks, self.optimizer, batch, noise, self.settings, self.losses
        )

    @torch.no_grad()
    def sample_actions(self, observations, seed):
        shape = (len(observations), self.action_dim)
        z = jax.random.normal(jax.random.split(seed)[0], shape)
        return self.networks["actor"](torch.tensor(observations), torch.tensor(np.array(z))).numpy()


def policy_of(agent, key):
    def policy(observations):
        nonlocal key
        key, now = jax.random.split(key)
        return np.clip(agent.sample_actions(observations.astype(np.float32), seed=now), -1, 1)

    return policy


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main(args):
    sys.path.insert(0, str(args.repository))
    from agents.fql import FQLAgent, get_config

    task, preset = ours.find_task(args.env_id)
    data, facts = ours.load_data(task, args.data_dir, "cpu")
    data = {key: value.numpy() for key, value in data.items()}
    envs = [lambda: ours.make_env(task.name)] * 10
    envs = gymnasium.vector.AsyncVectorEnv(envs, autoreset_mode="Disabled")
    config = get_config()
    config.update(alpha=preset.alpha, q_agg=preset.q_agg, discount=preset.discount)
    agent = FQLAgent.create(args.seed, data["observations"][:1], data["actions"][:1], config)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"env": task.name, "seed": args.seed, "agent": config.to_dict(), "data": facts}
    record |= {"computed_by": "fql.py" if args.ours else "the released code"}
    record["versions"] = {name: version(name) for name in ("jax", "flax", "optax", "torch")}
    (args.out / "config.json").write_text(json.dumps(record, indent=1, default=str))
    if args.ours:
        agent = Ours(agent, config)

    rng = np.random.default_rng(args.seed)
    logged, evaluated = [], []
    for step in range(1, args.steps + 1):
        index = rng.integers(len(data["rewards"]), size=256)
        agent, info = agent.update({key: value[index] for key, value in data.items()})
        if step % 5_000 == 0:
            logged.append({"step": step} | {key: float(info[key]) for key in sorted(info)})
            write(args.out / "train.csv", logged)
        if step % args.eval_interval == 0:
            policy = policy_of(agent, jax.random.PRNGKey(1_000 * args.seed + step))
            row = ours.evaluate(policy, envs, args.eval_episodes, (args.seed, step), NeverStop())
            evaluated.append({"step": step} | row)
            write(args.out / "eval.csv", evaluated)
            print(f"update {step:,}: score {row['score']:.1f}", flush=True)
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""The released JAX FQL on the data of the runs here, evaluated as they are.

    git clone https://github.com/seohongpark/fql released_fql
    pip install jax flax optax ml_collections distrax
    python results/reproduction/released_fql.py --repository released_fql --env-id cube-single

Writes config.json, eval.csv and train.csv, what agent.update returns every 5,000 updates.
"""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import gymnasium
import jax
import numpy as np
import tyro

sys.path.append(str(Path(__file__).parents[2]))

import fql as ours  # noqa: E402


@dataclasses.dataclass
class Args:
    repository: Path
    env_id: str
    data_dir: Path = Path("data/official-size")
    out: Path = Path("released")
    seed: int = 0
    steps: int = 20_000
    eval_interval: int = 10_000


class NeverStop:
    """What ours.evaluate asks whether to stop."""

    def check(self):
        pass


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
    (args.out / "config.json").write_text(json.dumps(record, indent=1, default=str))

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
            row = ours.evaluate(policy, envs, 50, (args.seed, step), NeverStop())
            evaluated.append({"step": step} | row)
            write(args.out / "eval.csv", evaluated)
            print(f"update {step:,}: score {row['score']:.1f}", flush=True)
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Trains the released JAX code of DROL or FQL on the data of the runs here, evaluated as they are.

    git clone https://github.com/muzhancun/DROL released_drol   # commit 7e669b0
    git clone https://github.com/seohongpark/fql released_fql   # commit 719d044
    pip install jax==0.10.2 flax optax ml_collections distrax jaxtyping
    PYTHONPATH=released_fql python -m results.reproduction.released_code --algorithm fql \
        --env-id door-expert-v1 --seed 1 --steps 30000 --eval-interval 5000

Settings are the published ones of our programs, and else the released code's defaults. Batches
are drawn here, by NumPy. The folder given by --out keeps config.json, eval.csv, train.csv (what
the update returns every 5,000 updates) and a checkpoint, from which the same command goes on.
"""

import json
import pickle
import signal
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pandas as pd
import tyro


@dataclass
class Args:
    algorithm: Literal["drol", "fql"]
    env_id: str
    seed: int = 0
    steps: int = 30_000
    eval_interval: int = 5_000
    eval_episodes: int = 50
    checkpoint_interval: int = 500
    data_dir: str = "data/official-size"
    out: Path = Path("released")


def make_policy(agent, key):
    """What ours.evaluate plays: the agent, with a new key per call."""

    def policy(observations):
        nonlocal key
        key, now = jax.random.split(key)
        return np.clip(agent.sample_actions(observations.astype(np.float32), seed=now), -1, 1)

    return policy


def main(args):
    ours = import_module(args.algorithm)
    released = import_module(f"agents.{args.algorithm}")
    settings, _ = ours.resolve(ours.Args(env_id=args.env_id))
    env_name = settings.env_id
    data = ours.load_data(env_name, args.data_dir)
    envs = ours.make_envs(env_name, 10, data)
    # make_envs blocks it, in its workers for good: a KeyboardInterrupt's exit waits for them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    data = {key: value.numpy() for key, value in data.items()}

    config = released.get_config()
    weight = "bc_coef" if args.algorithm == "drol" else "alpha"
    config.update({name: getattr(settings, name) for name in (weight, "q_agg", "discount")})
    create = getattr(released, f"{args.algorithm.upper()}Agent").create
    agent = create(args.seed, data["observations"][:1], data["actions"][:1], config)
    rng = np.random.default_rng(args.seed)
    step, rows = 0, {"train": [], "eval": []}

    args.out.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("jax", "flax", "optax", "mujoco")}
    record = {"algorithm": args.algorithm, "code": "released", "env_id": env_name}
    record |= {"seed": args.seed, "versions": versions, "agent": config.to_dict()}
    (args.out / "config.json").write_text(json.dumps(record, indent=1, default=str))
    checkpoint = args.out / "checkpoint.pickle"
    if checkpoint.exists():
        saved = pickle.loads(checkpoint.read_bytes())
        agent = agent.replace(network=agent.network.replace(**saved["network"]), rng=saved["key"])
        rng.bit_generator.state, step, rows = saved["rng"], saved["step"], saved["rows"]

    while step < args.steps:
        step += 1
        index = rng.integers(len(data["rewards"]), size=256)
        agent, info = agent.update({key: value[index] for key, value in data.items()})
        if step % 5_000 == 0:
            rows["train"].append({"step": step} | {key: float(info[key]) for key in sorted(info)})
        if step % args.eval_interval == 0:
            policy = make_policy(agent, jax.random.PRNGKey(1_000 * args.seed + step))
            row = ours.evaluate(policy, envs, args.eval_episodes, (args.seed, step))
            rows["eval"].append({"step": step} | row)
            print(f"update {step:,}: score {row['score']:.1f}", flush=True)
        if step % args.checkpoint_interval == 0:
            for name in rows:
                pd.DataFrame(rows[name]).to_csv(args.out / f"{name}.csv", index=False)
            network = {x: getattr(agent.network, x) for x in ("step", "params", "opt_state")}
            saved = {"network": network, "key": agent.rng}
            saved = jax.device_get(saved) | {"rng": rng.bit_generator.state}
            saved |= {"step": step, "rows": rows}
            checkpoint.with_suffix(".partial").write_bytes(pickle.dumps(saved))
            checkpoint.with_suffix(".partial").replace(checkpoint)
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Records what the released code does, for the parity tests. README.md in this folder has the
versions, and what a recording holds.

    python testdata/parity/record.py drol PATH_OF_A_CLONE OUT

Each recording here is made again from its own inputs and written to OUT. Printed is how far it is
from the committed one: the largest difference in an array as a share of its largest number.
"""

import ast
import importlib
import re
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import inputs
import jax
import numpy as np

NUMBER = re.compile(r"(?<=[=,\n])-?[\d.]+(?:e-?\d+)?")  # not a digit in a name
HERE = Path(__file__).resolve().parent
NETWORKS = {  # where the released code keeps them
    "actor": ("modules_actor_onestep_flow", "mlp"),
    "critic": ("modules_critic", "value_net"),
    "target_critic": ("modules_target_critic", "value_net"),
    "flow": ("modules_actor_bc_flow", "mlp"),
}
NOISE = {  # in the order in which an update draws it
    "drol": ["next_latents", "latents"],
    "fql": ["next_noises", "x_0", "t", "noises"],
}


def part(record, prefix):
    """{rest of the key: array} of the keys that begin with the prefix."""
    return {key.removeprefix(prefix): record[key] for key in record if key.startswith(prefix)}


def make_agent(module, config, record):
    """The released agent with the recorded initial parameters."""
    agent_config = module.get_config()
    agent_config.num_candidates = config["k"]  # FQL's agent has none and ignores it
    agent_config.actor_hidden_dims = agent_config.value_hidden_dims = config["hidden_dims"]
    for name in set(agent_config) & set(config) - {"algorithm"}:
        agent_config[name] = config[name]
    create = {"drol": "DROLAgent", "fql": "FQLAgent"}[config["algorithm"]]
    batch = part(record, "step0/batch/")
    agent = getattr(module, create).create(0, batch["observations"], batch["actions"], agent_config)
    params = dict(agent.network.params)
    for name, (outer, inner) in NETWORKS.items():
        layers = {}
        for key, value in part(record, f"init/{name}/").items():
            layer, kind = key.split("/")
            layers.setdefault(layer, {})[kind] = jax.numpy.asarray(value)
        if layers:
            params[outer] = {inner: layers}
    return agent.replace(network=agent.network.replace(params=params))


def flat(params, root):
    """{root/network/layer/name: array} of the networks that a recording has."""
    arrays = {}
    for name, (outer, inner) in NETWORKS.items():
        if outer in params:
            for layer, values in params[outer][inner].items():
                for kind, value in values.items():
                    arrays[f"{root}/{name}/{layer}/{kind}"] = np.asarray(value)
    return arrays


def draws(module, noise):
    """Patches that let the released code draw this noise, one array after another."""
    # the last draw of an update is for a metric that is not recorded
    queue = [*noise, np.zeros_like(noise[0])]

    def take(key, *args, shape=None, R=None):
        value = queue.pop(0)
        assert value.shape == tuple(shape or args[0])
        return value

    if hasattr(module, "sample_uniform_in_hypersphere"):
        return mock.patch.object(module, "sample_uniform_in_hypersphere", take)
    return mock.patch.multiple(jax.random, normal=take, uniform=take)


def updates(module, config, record, count):
    """Makes the updates. Returns what the agent reported, its first gradient and its end."""
    agent, reports = make_agent(module, config, record), []
    for step in range(count):
        batch = part(record, f"step{step}/batch/")
        noise = [record[f"step{step}/noise/{name}"] for name in NOISE[config["algorithm"]]]
        if step == 0:
            total_loss = partial(agent.total_loss, batch, rng=agent.rng)
            with draws(module, noise):
                gradient, _ = jax.grad(total_loss, has_aux=True)(agent.network.params)
        with draws(module, noise):
            agent, info = agent.update(batch)
        reports.append({key.removeprefix("actor/"): np.asarray(x) for key, x in info.items()})
        del reports[-1]["mse"]  # of another draw
    return reports, flat(gradient, "grad0"), flat(agent.network.params, "final")


def record_small(module, path, out):
    record = dict(np.load(path))
    config = ast.literal_eval(str(record["config"]))
    reports, gradient, final = updates(module, config, record, 3)
    made = gradient | final
    for step, report in enumerate(reports):
        made |= {f"step{step}/info/{key}": value for key, value in report.items()}
    given = {key: x for key, x in record.items() if key not in made and "/info/" not in key}
    np.savez_compressed(out / path.name, **given, **made)
    far = {}
    for key, value in made.items():
        far[key] = np.abs(value - record[key]).max() / (np.abs(record[key]).max() or 1)
    worst = max(far, key=far.get)
    print(f"{path.name}: {far[worst]:.1e} in {worst}")


def record_published_size(module, algorithm, out):
    name = f"published_size/{algorithm}_seed0.csv"
    text = (HERE / name).read_text()
    names = text.splitlines()[1].split(",")
    config = inputs.config_of(algorithm)
    reports, _, final = updates(module, config, inputs.draw(config, 0, 12), 12)
    sizes = []
    for network in ("actor", "critic", "target_critic", "flow"):
        arrays = part(final, f"final/{network}/").values()
        if arrays:
            x = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
            sizes.append(f"{network}_norm={np.linalg.norm(x):.9g}")
            sizes.append(f"{network}_abs_sum={np.abs(x).sum():.9g}")
    made = f"# {', '.join(sizes)}\n{','.join(names)}\n"
    for i, report in enumerate(reports, 1):
        made += ",".join([str(i), *(str(float(report[key])) for key in names[1:])]) + "\n"
    (out / "published_size").mkdir(exist_ok=True)
    (out / name).write_text(made)
    ours, theirs = (np.array([float(x) for x in NUMBER.findall(t)]) for t in (made, text))
    print(f"{name}: {np.max(np.abs(ours - theirs) / np.abs(theirs)):.1e}")


def main(algorithm, clone, out):
    sys.path.insert(0, clone)  # the released code is no package
    module, out = importlib.import_module(f"agents.{algorithm}"), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        for path in sorted(HERE.glob(f"{algorithm}_*.npz")):
            record_small(module, path, out)
        record_published_size(module, algorithm, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

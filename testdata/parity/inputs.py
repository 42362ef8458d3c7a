"""What the recordings at the published size were made from: nothing large has to be stored."""

import numpy as np

PUBLISHED_SIZE = {  # of humanoidmaze-medium
    "batch": 256,
    "obs_dim": 69,
    "action_dim": 21,
    "hidden_dims": (512, 512, 512, 512),
    "k": 16,
    "bc_coef": 0.3,
    "alpha": 30.0,
    "flow_steps": 10,
    "discount": 0.995,
    "q_agg": "mean",
    "actor_q_agg": "min",
    "lr": 3e-4,
    "tau": 0.005,
}
NORMALIZED = {"drol": True, "fql": False}  # whether the guidance is divided by mean |q|


def config_of(algorithm):
    normalized = {"normalize_q_loss": NORMALIZED[algorithm]}
    return PUBLISHED_SIZE | {"algorithm": algorithm} | normalized


def draw_network(rng, in_dim, hidden_dims, out_dim, critic):
    """{layer/name: array}, each bias and scale away from where training would begin. A critic's
    arrays have a leading axis of two."""
    parameters, lead = {}, (2,) if critic else ()
    widths = (in_dim, *hidden_dims, out_dim)
    uniform = lambda low, high, *shape: rng.uniform(low, high, lead + shape).astype(np.float32)
    for j, (m, n) in enumerate(zip(widths, widths[1:], strict=False)):
        bound = (6 / (m + n)) ** 0.5
        parameters[f"Dense_{j}/kernel"] = uniform(-bound, bound, m, n)
        parameters[f"Dense_{j}/bias"] = uniform(-0.05, 0.05, n)
        if critic and n > 1:
            parameters[f"LayerNorm_{j}/scale"] = uniform(0.9, 1.1, n)
            parameters[f"LayerNorm_{j}/bias"] = uniform(-0.05, 0.05, n)
    return parameters


def draw(config, seed, updates):
    """Initial parameters, then batch and noise of every update, named as in the recordings. The
    order of the draws is part of the recordings."""
    rng, record = np.random.RandomState(seed), {}
    B, S, A = config["batch"], config["obs_dim"], config["action_dim"]
    sizes = {"actor": (S + A, A), "critic": (S + A, 1), "target_critic": (S + A, 1)}
    if config["algorithm"] == "fql":
        sizes["flow"] = (S + A + 1, A)
    for name, (in_dim, out_dim) in sizes.items():
        drawn = draw_network(rng, in_dim, config["hidden_dims"], out_dim, "critic" in name)
        record |= {f"init/{name}/{key}": value for key, value in drawn.items()}

    def ball(*shape):
        g, u = rng.normal(size=shape), rng.uniform(size=(*shape[:-1], 1))
        return A**0.5 * u ** (1 / A) * g / np.linalg.norm(g, axis=-1, keepdims=True)

    for step in range(updates):
        drawn = {
            "batch/observations": rng.normal(size=(B, S)),
            "batch/actions": rng.uniform(-0.99, 0.99, (B, A)),
            "batch/next_observations": rng.normal(size=(B, S)),
            "batch/rewards": -rng.randint(0, 2, B),
            "batch/masks": rng.uniform(size=B) > 0.02,
        }
        if config["algorithm"] == "drol":
            drawn["noise/next_latents"] = ball(B, A)
            drawn["noise/latents"] = ball(B, config["k"], A)
        else:
            drawn["noise/next_noises"] = rng.normal(size=(B, A))
            drawn["noise/x_0"] = rng.normal(size=(B, A))
            drawn["noise/t"] = rng.uniform(size=(B, 1))
            drawn["noise/noises"] = rng.normal(size=(B, A))
        record |= {f"step{step}/{key}": x.astype(np.float32) for key, x in drawn.items()}
    return record

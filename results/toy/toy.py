"""The method in two pictures: one state, whose actions have two dimensions.

    python -m results.toy.toy

DROL and FQL are trained by the functions of drol.py and fql.py. Only the critic is a fixed formula,
so that what is seen is the actor's doing alone. It rises outwards, so that leaving the data is
tempting. FQL runs with normalize_q, so that its alpha and DROL's bc_coef are of one scale.
"""

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import tyro
from scipy.spatial import Voronoi
from torch import nn

import drol
import fql

ANGLES = torch.deg2rad(torch.tensor([80.0, 152.0, 224.0, 296.0, 8.0]))
CENTRES = 0.65 * torch.stack([ANGLES.cos(), ANGLES.sin()], -1)  # (5, 2)
MODE_SHARES = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10])
SIGMA = 0.1  # of each mode
RADIUS = 3 * SIGMA  # of the discs, which have 99 % of the data
SAMPLES, SHOWN = 2_000, 500  # actions of each policy: for the numbers, and in the picture
WEIGHTS = (3.0, 30.0)  # the last one is in the picture
METHODS = {"DROL, K = 1": (drol, 1), "DROL, K = 16": (drol, 16), "FQL": (fql, None)}
COLORS = {"DROL, K = 1": "#56B4E9", "DROL, K = 16": "#0072B2", "FQL": "#009E73"}
BLUE, RED, GREY = "#0072B2", "#D55E00", "#A0A0A0"


class FixedCritic(nn.Module):
    """Q as a formula, called as drol.Critic is: states (B, O) and actions (B, A) to (2, B)."""

    def forward(self, s, a):
        q = 1 + 0.3 * a[..., 0] + 0.4 * a.square().sum(-1)
        return torch.stack([q, q])


def sample_data(count, generator):
    """A dataset as load_data returns it, of one-step episodes in one state."""
    mode = torch.multinomial(MODE_SHARES, count, replacement=True, generator=generator)
    actions = CENTRES[mode] + SIGMA * torch.randn(count, 2, generator=generator)
    data = {key: torch.zeros(count, 1) for key in ("observations", "next_observations")}
    data |= {key: torch.zeros(count) for key in ("rewards", "masks")}
    return data | {"actions": actions.clamp(-1, 1)}


def measure(actions):
    """Of actions (N, 2): mean Q, the share in the discs, and the number of modes found: of those
    whose disc has at least a quarter as many actions as it has of the data."""
    distance, mode = (actions[:, None] - CENTRES).norm(dim=-1).min(1)
    shares = torch.bincount(mode[distance <= RADIUS], minlength=len(CENTRES)) / len(actions)
    return {
        "mean_q": round(FixedCritic()(None, actions).mean().item(), 4),
        "in_discs": round((distance <= RADIUS).float().mean().item(), 4),
        "modes_found": (shares >= MODE_SHARES / 4).sum().item(),
    }


def train(program, k, weight, data, seed, updates):
    """Trains an actor. Returns SAMPLES of its actions, (SAMPLES, 2)."""
    flags = {"k": k, "bc_coef": weight} if k else {"alpha": weight, "normalize_q": True}
    args = program.Args("cube-single", batch_size=64, discount=0.0, q_agg="mean", **flags)
    networks = program.make_networks(1, 2, (64, 64), drol.make_generator("cpu", seed, 0))
    networks["critic"] = networks["target_critic"] = FixedCritic()
    optimizer = torch.optim.Adam(networks.parameters(), lr=1e-3)
    generator = drol.make_generator("cpu", seed, 1)
    for _ in range(updates):
        batch = program.sample_batch(data, args.batch_size, generator)
        noise = program.sample_noise(args, 2, generator)
        loss, _ = program.total_loss(networks, batch, noise, args)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.as_tensor(program.act(networks["actor"], np.zeros((SAMPLES, 1)), 2, generator))


def draw_square(axis, title, color="black"):
    """The square of actions with contours of Q."""
    x = torch.linspace(-1, 1, 100)
    q = FixedCritic()(None, torch.stack(torch.meshgrid(x, x, indexing="xy"), -1))[0]
    axis.contour(x, x, q, np.arange(0.9, 2.2, 0.2), colors=GREY, linewidths=0.6, alpha=0.6)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, color=color, fontsize=10, fontweight="bold")


def draw_policies(samples, means):
    """samples: {method: (N, 2)}; means: a row of numbers per method."""
    figure, axes = plt.subplots(1, 3, figsize=(8.3, 4), layout="constrained")
    figure.suptitle(
        "Discs: five modes of dataset actions in one state, darker with more data.\n"
        "Lines: a fixed Q, which rises outwards. Points: actions of a trained policy.",
        fontsize=9.5,
    )
    for axis, (method, actions) in zip(axes, samples.items(), strict=True):
        draw_square(axis, method, COLORS[method])
        for centre, share in zip(CENTRES.tolist(), MODE_SHARES.tolist(), strict=True):
            axis.add_patch(plt.Circle(centre, RADIUS, color=str(round(0.97 - share, 2)), zorder=0))
        axis.plot(*actions[:SHOWN].T, ".", color=COLORS[method], markersize=3)
        row = means.loc[method]
        axis.set_xlabel(
            f"{row.in_discs:.0%} of actions in a disc\n{row.modes_found:g} of 5 modes found\n"
            f"mean Q {row.mean_q:.2f} (data: {means.loc['data'].mean_q:.2f})"
        )
    return figure


def draw_routing(candidates, action):
    """candidates: (K, 2); the dataset action: (2,)."""
    figure, axes = plt.subplots(1, 3, figsize=(8.3, 3.5), layout="constrained")
    titles = [
        f"1. {len(candidates)} latents give\n{len(candidates)} candidate actions",
        "2. The dataset action is routed\nto the nearest, the winner",
        "3. Only the winner is trained:\ntowards the action, and up Q",
    ]
    k = drol.route(candidates[None], action[None])[0].item()
    winner = candidates[k]
    uphill = torch.func.grad(lambda a: FixedCritic()(None, a)[0])(winner)
    top = winner + 0.4 * uphill / uphill.norm()
    # Four points far off bound the cells of all candidates.
    diagram = Voronoi(np.vstack([candidates, [[-99, 0], [99, 0], [0, -99], [0, 99]]]))
    cells = [diagram.vertices[diagram.regions[i]] for i in diagram.point_region[:-4]]
    for step, (axis, title) in enumerate(zip(axes, titles, strict=True), 1):
        draw_square(axis, title)
        axis.plot(*candidates.T, "o", color=BLUE if step < 3 else GREY, markersize=7)
        if step > 1:
            for cell in cells:
                axis.add_patch(plt.Polygon(cell, fill=False, edgecolor=GREY, linewidth=0.9))
            axis.add_patch(plt.Polygon(cells[k], color=BLUE, alpha=0.2, linewidth=0))
            axis.plot(*winner, "o", color=BLUE, markersize=10)
            axis.plot(*action, "*", color="black", markersize=15, markeredgecolor="white", zorder=6)
    axes[0].set_xlabel("lines: Q, which rises outwards")
    label = {"fontsize": 9, "textcoords": "offset points"}
    axes[1].annotate("dataset action", action, (0, -17), ha="center", **label)
    axes[1].annotate("winner", winner, (-10, -26), color=BLUE, ha="center", **label)
    axes[2].annotate("cloning", action, (0, -17), ha="center", **label)
    axes[2].annotate("Q rises", top, (5, -6), color=RED, **label)
    for end, color in ((action, "black"), (top, RED)):
        arrow = {"arrowstyle": "-|>", "linewidth": 2.5, "color": color, "mutation_scale": 15}
        axes[2].annotate("", end, winner, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
    return figure


def main(out: Path = Path(__file__).parent, updates: int = 3_000, seeds: int = 3):
    """Trains the policies and writes toy.png, routing.png and toy.csv, a row per policy."""
    torch.set_num_threads(1)  # the numbers then do not depend on the number of cores
    data = sample_data(5_000, drol.make_generator("cpu", 0))
    rows, samples = [{"method": "data"} | measure(data["actions"])], {}
    for method, weight, seed in product(METHODS, WEIGHTS, reversed(range(seeds))):
        program, k = METHODS[method]
        actions = train(program, k, weight, data, seed, updates)
        rows.append({"method": method, "weight": weight, "seed": seed} | measure(actions))
        samples[method] = actions  # the last ones, of the last weight and seed 0, are shown
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    table.to_csv(out / "toy.csv", index=False)
    means = table.drop(columns="seed").groupby(["method", "weight"], dropna=False).mean()
    print(means.round(2).to_string())
    shown = means.drop(index=WEIGHTS[0], level="weight").droplevel("weight")
    draw_policies(samples, shown).savefig(out / "toy.png", dpi=200)
    candidates = train(drol, 8, 10.0, data, 0, 150)[:8]
    draw_routing(candidates, data["actions"][21]).savefig(out / "routing.png", dpi=200)


if __name__ == "__main__":
    tyro.cli(main)

"""The method in pictures: DROL and FQL on one state whose actions have two dimensions.

    python tools/toy.py --out results/toy

It trains with the functions of drol.py and fql.py (actor_loss, flow_loss, route, ...). Only the
critic is a fixed formula, so that what is seen is the actor's doing alone.

data      five modes on a ring, 30, 25, 20, 15 and 10 % of the actions, normal with deviation SIGMA
Q         1 + 0.3 a_x + 0.4 |a|^2: it prefers the modes on the right and rises outwards, within
          the modes and beyond them, so that leaving the data is tempting
support   the discs of radius 3 SIGMA around the centres of the modes: 99 % of the data
covered   said of a mode whose disc has at least a quarter as many samples as it has of the data

All policies take the same batch, learning rate and updates, and divide the Q term by the mean of
|q| (FQL: with normalize_q), so bc_coef and alpha are one scale. Written into --out:

routing.png    one routing, step by step
toy.png        samples of three trained policies at one weight
frontier.png   mean Q against the share of samples in the support, for five weights
toy.csv        the numbers, a row per method, weight and seed
"""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import tyro
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from scipy import spatial
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are
import drol  # noqa: E402
import fql  # noqa: E402
from tools.figures import COLORS, WIDTH, plt  # noqa: E402

ANGLES = torch.deg2rad(torch.tensor([80.0, 152.0, 224.0, 296.0, 8.0]))
CENTRES = 0.65 * torch.stack([ANGLES.cos(), ANGLES.sin()], -1)  # (5, 2)
MODE_SHARES = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10])
SIGMA = 0.1
RADIUS = 3 * SIGMA  # of the support around a centre
DATA_SIZE = 5_000  # actions in the dataset
BATCH_SIZE = 64
HIDDEN_DIMS = (64, 64)
LEARNING_RATE = 1e-3
FLOW_STEPS = 10
SAMPLES, SAMPLES_SHOWN = 2_000, 500  # of each policy: for the numbers, and in the picture
WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)  # of cloning or distillation against the Q term
WEIGHT_SHOWN = 30.0  # in toy.png
ROUTING = {"k": 8, "weight": 10.0, "updates": 150}  # of the policy of routing.png
ACTION_SHOWN = 15  # in the dataset; of those tried, one whose two arrows lie well apart
GREY, DARK = "#a0a0a0", "#333333"


@dataclass
class Args:
    k: PositiveInt = 16  # candidates per state of the second DROL policy; the first has one
    updates: PositiveInt = 3_000  # of each policy
    seeds: PositiveInt = 5  # trained at each weight
    out: Path = Path("figures/toy")  # folder of the pictures and numbers


# -------------------- problem


class FixedCritic(nn.Module):
    """Q as a formula, called as drol.Critic is: states (B, O) and actions (B, A) to (2, B)."""

    def forward(self, s, a):
        q = 1 + 0.3 * a[..., 0] + 0.4 * a.square().sum(-1)
        return torch.stack([q, q])


def sample_data(count, generator):
    """Dataset actions (count, 2)."""
    mode = torch.multinomial(MODE_SHARES, count, replacement=True, generator=generator)
    return (CENTRES[mode] + SIGMA * torch.randn(count, 2, generator=generator)).clamp(-1, 1)


def measure(actions):
    """Numbers of actions (N, 2): their mean Q, the share in the support, the modes covered."""
    distance, mode = (actions[:, None] - CENTRES).norm(dim=-1).min(1)
    inside = distance <= RADIUS
    shares = torch.bincount(mode[inside], minlength=len(CENTRES)) / len(actions)
    return {
        "mean_q": round(FixedCritic()(None, actions).mean().item(), 4),
        "in_support": round(inside.float().mean().item(), 4),
        "modes_covered": (shares >= MODE_SHARES / 4).sum().item(),
    }


# -------------------- training


def losses(program, networks, actions, noise, weight):
    """The loss of everything that the program trains, by its own functions."""
    batch = {"observations": torch.zeros(len(actions), 1), "actions": actions}
    critic = FixedCritic()
    if program is drol:
        return drol.actor_loss(networks["actor"], critic, batch, noise["candidate_z"], weight)[0]
    flow_loss, _ = fql.flow_loss(networks["flow"], batch, noise["x_0"], noise["t"])
    actor_loss, _ = fql.actor_loss(
        networks["actor"],
        networks["flow"],
        critic,
        batch,
        noise["z"],
        FLOW_STEPS,
        weight,
        normalize_q=True,
    )
    return flow_loss + actor_loss


def train(program, k, data, runs, updates, progress=""):
    """Trains a policy per run, a pair of a weight and a seed, all of them at once.

    Returns a function from latents (N, 2) to the actions (R, N, 2) of the R policies.
    """
    generator = drol.make_generator("cpu", runs[0][1], 1)
    weights = torch.tensor([weight for weight, _ in runs])
    fresh = [
        program.make_networks(1, 2, HIDDEN_DIMS, drol.make_generator("cpu", seed, 0))
        for _, seed in runs
    ]
    names = ["actor", "flow"] if program is fql else ["actor"]
    # Parameters get a first dimension, a row per run; vmap then takes the loss of each row.
    parameters = {n: stack_module_state([networks[n] for networks in fresh])[0] for n in names}
    optimizer = torch.optim.Adam([p for n in names for p in parameters[n].values()], LEARNING_RATE)

    def networks_of(row):
        return {n: lambda *x, n=n: functional_call(fresh[0][n], row[n], x) for n in names}

    def loss_of(row, *inputs):
        return losses(program, networks_of(row), *inputs)

    @torch.no_grad()
    def act(latents):
        s = torch.zeros(len(latents), 1)
        return vmap(lambda row: networks_of(row)["actor"](s, latents).clamp(-1, 1))(parameters)

    shape = (len(runs), BATCH_SIZE)
    settings = SimpleNamespace(batch_size=math.prod(shape), k=k)
    for _ in tqdm(range(updates), progress, leave=False, disable=None):
        actions = data[torch.randint(len(data), shape, generator=generator)]
        noise = program.sample_noise(settings, 2, generator)
        noise = {key: value.unflatten(0, shape) for key, value in noise.items()}
        loss = vmap(loss_of)(parameters, actions, noise, weights).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return act


# -------------------- pictures


def method_color(method, k):
    return COLORS["FQL" if method == "FQL" else "DROL" if method.endswith(f" {k}") else "DROL*"]


def draw_square(ax, title, color="black"):
    """The square of actions with faint contours of Q."""
    x = torch.linspace(-1, 1, 100)
    q = FixedCritic()(None, torch.stack(torch.meshgrid(x, x, indexing="xy"), -1))[0]
    ax.contour(x, x, q, np.arange(0.9, 2.2, 0.2), colors=GREY, linewidths=0.6, alpha=0.6)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(True)
    ax.set_title(title, color=color, fontsize=10, fontweight="bold")


def draw_policies(samples, table, k):
    """samples: {method: (N, 2)}. The numbers are means over seeds."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 4.15))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.85, bottom=0.26, wspace=0.04)
    figure.text(
        0.5,
        0.955,
        "One state. Discs: five modes of dataset actions, darker with more data."
        " Lines: a fixed Q, which rises outwards.",
        ha="center",
        fontsize=9.5,
    )
    text = "{:.2f} of the samples in the discs\nmean Q {:.2f}\n{:g} of 5 modes covered"
    means = table[table.weight.isna() | (table.weight == WEIGHT_SHOWN)]
    means = means.groupby("method")[["in_support", "mean_q", "modes_covered"]].mean()
    for ax, (method, actions) in zip(axes, samples.items(), strict=True):
        color = method_color(method, k)
        draw_square(ax, method, color)
        for centre, share in zip(CENTRES.tolist(), MODE_SHARES.tolist(), strict=True):
            ax.add_patch(plt.Circle(centre, RADIUS, color=str(round(0.97 - share, 2)), zorder=0))
        ax.plot(*actions[:SAMPLES_SHOWN].T, ".", color=color, markersize=3)
        ax.text(
            0.5,
            -0.04,
            text.format(*means.loc[method]),
            transform=ax.transAxes,
            fontsize=9.5,
            ha="center",
            va="top",
        )
    support, q, _ = means.loc["data"]
    seeds = table.seed.nunique()
    figure.text(
        0.5,
        0.01,
        f"Of the data, {support:.2f} lies in the discs, with mean Q {q:.2f}. "
        f"Cloning weight {WEIGHT_SHOWN:g}; FQL with normalize_q; numbers: means of {seeds} "
        "seeds.\nCovered: a mode that has a quarter of its share of the data, or more.",
        ha="center",
        fontsize=8.5,
        color=DARK,
    )
    return figure


def cells(points):
    """The Voronoi cell of each point as a polygon; four points far off bound them all."""
    diagram = spatial.Voronoi(np.vstack([points, [[-99, 0], [99, 0], [0, -99], [0, 99]]]))
    return [diagram.vertices[diagram.regions[i]] for i in diagram.point_region[: len(points)]]


def draw_routing(candidates, action):
    """candidates: (K, 2); the dataset action: (2,)."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.35))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.84, bottom=0.02, wspace=0.04)
    k = drol.route(candidates[None], action[None])[0].item()
    winner = candidates[k].clone().requires_grad_()
    (uphill,) = torch.autograd.grad(FixedCritic()(None, winner[None])[0].sum(), winner)
    winner, top = winner.detach(), winner.detach() + 0.4 * uphill / uphill.norm()
    others = np.delete(candidates.numpy(), k, axis=0)
    titles = [
        f"1. {len(candidates)} latents give\n{len(candidates)} candidate actions",
        "2. The dataset action is routed\nto the nearest, the winner",
        "3. Only the winner is trained:\ntowards the action, and up Q",
    ]
    blue = COLORS["DROL"]
    for step, (ax, title) in enumerate(zip(axes, titles, strict=True), 1):
        draw_square(ax, title)
        ax.plot(*others.T, "o", color=blue if step < 3 else GREY, markersize=7)
        ax.plot(*winner, "o", color=blue, markersize=7 if step == 1 else 10, zorder=4)
        if step > 1:
            for i, polygon in enumerate(cells(candidates)):
                ax.add_patch(plt.Polygon(polygon, fill=False, edgecolor=GREY, linewidth=0.9))
                if i == k:
                    ax.add_patch(plt.Polygon(polygon, color=blue, alpha=0.2, linewidth=0))
            ax.plot(*action, "*", color="black", markersize=15, markeredgecolor="white", zorder=6)
    label = {"fontsize": 9, "textcoords": "offset points"}
    axes[1].annotate("dataset action", action, (0, -17), ha="center", **label)
    axes[1].annotate("winner", winner, (-6, 9), color=blue, ha="center", **label)
    for end, color in ((action, "black"), (top, COLORS["Q"])):
        style = {
            "arrowstyle": "-|>,head_width=0.3,head_length=0.6",
            "linewidth": 2.5,
            "color": color,
        }
        axes[2].annotate("", end, winner, zorder=5, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})
    axes[2].annotate("cloning", action, (0, -17), ha="center", **label)
    axes[2].annotate("Q rises", top, (5, -6), color=COLORS["Q"], **label)
    axes[0].text(
        0,
        -0.92,
        "lines: Q, which rises outwards",
        fontsize=8.5,
        ha="center",
        bbox={"color": "white", "pad": 1},
    )
    return figure


def draw_frontier(table, k):
    """Mean Q against the share in the support: a point per method and weight, a dot per seed."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    for method in (f"DROL, K = {k}", "FQL"):
        seeds, color = table[table.method == method], method_color(method, k)
        ax.plot(seeds.in_support, seeds.mean_q, ".", color=color, alpha=0.4, markeredgewidth=0)
        means = seeds.groupby("weight")[["in_support", "mean_q"]].mean()
        covered = seeds.groupby("weight").modes_covered.min() == len(CENTRES)
        ax.plot(*means[covered].T.to_numpy(), color=color)
        labels = {}  # of points that lie together, one
        for weight, (x, y) in means.iterrows():
            fill = color if covered[weight] else "white"
            ax.plot(x, y, "o", color=color, markersize=8, markerfacecolor=fill)
            near = [place for place in labels if math.dist(place, (x, y)) < 0.06]
            labels.setdefault(near[0] if near else (x, y), []).append(f"{weight:g}")
        for place, weights in labels.items():
            text = ", ".join(weights)
            text = f"{method}, weight {text}" if place == [*labels][0] else text
            side = {"ha": "center", "va": "top"} if method == "FQL" else {"va": "bottom"}
            ax.annotate(
                text,
                place,
                (0, -11) if method == "FQL" else (7, 3),
                color=color,
                textcoords="offset points",
                **side,
            )
    data = table[table.method == "data"].iloc[0]
    ax.plot(data.in_support, data.mean_q, "*", color="black", markersize=14)
    ax.annotate(
        "data", (data.in_support, data.mean_q), (0, 10), textcoords="offset points", ha="center"
    )
    ax.set(
        xlabel="share of samples in the support", ylabel="mean Q of the samples", xlim=(-0.02, 1.03)
    )
    ax.set_ylim(bottom=1)
    ax.set_title(
        "Means over seeds at five weights. Filled: every seed covers all five modes.", loc="left"
    )
    return figure


# -------------------- main


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    torch.set_num_threads(1)  # the numbers then do not depend on the number of cores
    data = sample_data(DATA_SIZE, drol.make_generator("cpu", 0))
    runs = [(weight, seed) for weight in WEIGHTS for seed in range(args.seeds)]
    methods = {"DROL, K = 1": (drol, 1), f"DROL, K = {args.k}": (drol, args.k), "FQL": (fql, 1)}
    rows, samples = [{"method": "data", **measure(data)}], {}
    for method, (program, k) in methods.items():
        act = train(program, k, data, runs, args.updates, method)
        generator = drol.make_generator("cpu", 0, 2)
        actions = act(program.sample_latents(SAMPLES, 2, generator=generator))
        samples[method] = actions[runs.index((WEIGHT_SHOWN, 0))]
        rows += [
            {"method": method, "weight": weight, "seed": seed, **measure(x)}
            for (weight, seed), x in zip(runs, actions, strict=True)
        ]
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    k, weight, updates = ROUTING.values()
    act = train(drol, k, data, [(weight, 0)], updates)
    candidates = act(drol.sample_latents(k, 2, generator=drol.make_generator("cpu", 0, 3)))[0]
    figures = {
        "toy": draw_policies(samples, table, args.k),
        "frontier": draw_frontier(table, args.k),
        "routing": draw_routing(candidates, data[ACTION_SHOWN]),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "toy.csv", index=False)
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png")
        plt.close(figure)
    print(args.out)


if __name__ == "__main__":
    main()

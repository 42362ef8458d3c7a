"""The method as a moving picture: DROL and FQL on one state whose actions have two dimensions.

    $ python tools/toy.py                # about a minute on a quiet CPU
    $ python tools/toy.py --frontier     # some minutes more: five weights and five seeds per method

It trains with the functions of drol.py and fql.py themselves (actor_loss, flow_loss, route, ...).
Only the critic is a fixed formula, so that what is seen is the actor's doing alone.

data      five modes on a ring, 30, 25, 20, 15 and 10 % of the actions, normal with deviation SIGMA
Q         1 + 0.3 a_x + 0.4 |a|^2: it prefers the modes on the right and rises outwards, within
          the modes and beyond them, so that leaving the data is tempting
support   the discs of radius 3 SIGMA around the centres of the modes: 99 % of the data
covered   said of a mode whose disc has at least a quarter as many samples as it has of the data

All policies take the same batch, learning rate and updates, and divide the Q term by the mean of
|q|, so --bc-coef and --alpha are one scale: a mean squared distance against that term.
Written into --out:

toy.gif        500 samples of each policy while it trains; the candidates of one latent draw
toy.png        the last frame
toy.csv        the numbers of each frame
frontier.png   mean Q against the share of samples in the support, a curve per method
frontier.csv   its numbers, a row per method, weight and seed
"""

import csv
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.colors import ListedColormap
from PIL import Image
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are
mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import drol  # noqa: E402
import fql  # noqa: E402

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
FRONTIER_WEIGHTS, FRONTIER_SEEDS = (1.0, 3.0, 10.0, 30.0, 100.0), range(5)
NUMBERS = {"mean_q": "mean Q of the samples", "in_support": "share of samples in the support",
           "modes_covered": "share of modes covered"}


@dataclass
class Args:
    seed: int = 0  # seed of initialisation, batches, noise and samples
    k: int = 16  # candidates per state of the second DROL policy, 2 or more; the first has one
    bc_coef: float = 10.0  # DROL's weight of cloning against the Q term
    alpha: float = 10.0  # FQL's weight of distillation against the Q term
    updates: int = 3_000  # gradient steps of each policy
    frontier: bool = False  # also train each method with five weights and five seeds
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
    """The NUMBERS of actions (N, 2)."""
    distance, mode = (actions[:, None] - CENTRES).norm(dim=-1).min(1)
    inside = distance <= RADIUS
    shares = torch.bincount(mode[inside], minlength=len(CENTRES)) / len(actions)
    covered = shares >= MODE_SHARES / 4
    values = [FixedCritic()(None, actions)[0], inside.float(), covered.float()]
    return {name: round(x.mean().item(), 4) for name, x in zip(NUMBERS, values, strict=True)}


# -------------------- training

@dataclass
class Method:
    name: str
    program: ModuleType  # drol or fql
    k: int  # candidates per state; FQL does not read it
    color: str  # of Okabe and Ito, to be told apart by colour-blind readers
    marker: str


def make_methods(k):
    return [Method("DROL, K = 1", drol, 1, "#D55E00", "s"), Method("FQL", fql, 1, "#009E73", "^"),
            Method(f"DROL, K = {k}", drol, k, "#0072B2", "o")]


def losses(method, networks, actions, noise, weight):
    """The loss of everything that the method trains, by the functions of its own program."""
    batch = {"observations": torch.zeros(len(actions), 1), "actions": actions}
    critic, options = FixedCritic(), {"actor_q_agg": "min", "normalize_q": True}
    if method.program is drol:
        return drol.actor_loss(networks["actor"], critic, batch, noise["latents"], weight,
                               **options)[0]
    flow_loss, _ = fql.flow_loss(networks["flow"], batch, noise["x_0"], noise["t"])
    actor_loss, _ = fql.actor_loss(networks["actor"], networks["flow"], critic, batch,
                                   noise["latents"], FLOW_STEPS, weight, **options)
    return flow_loss + actor_loss


def train(method, data, runs, updates, frames, progress):
    """Trains a policy per run, a pair of a weight and a seed, all of them at once.

    Returns, for each update in frames, samples (R, SAMPLES, 2) of the R policies, and the
    candidates (R, K, 2) that they make of one latent draw, the same at every frame.
    """
    generator = drol.make_generator("cpu", runs[0][1], 1)
    weights = torch.tensor([weight for weight, _ in runs])
    fresh = [method.program.make_networks(1, 2, HIDDEN_DIMS, drol.make_generator("cpu", seed, 0))
             for _, seed in runs]
    names = ["actor", "flow"] if method.program is fql else ["actor"]
    # Parameters get a first dimension, a row per run; vmap then takes the loss of each row.
    parameters = {n: stack_module_state([networks[n] for networks in fresh])[0] for n in names}
    optimizer = torch.optim.Adam([p for n in names for p in parameters[n].values()], LEARNING_RATE)

    def networks_of(row):
        return {n: lambda *x, n=n: functional_call(fresh[0][n], row[n], x) for n in names}

    def loss_of(row, *inputs):
        return losses(method, networks_of(row), *inputs)

    def act(row, latents):
        s = torch.zeros(len(latents), 1)
        return networks_of(row)["actor"](s, latents).clamp(-1, 1)

    latents = method.program.sample_latents(SAMPLES, 2, generator=generator)
    draw = method.program.sample_latents(method.k, 2, generator=generator)
    settings, shape, record = SimpleNamespace(k=method.k), (len(runs), BATCH_SIZE), {}
    for update in tqdm(range(updates + 1), progress, leave=False, disable=None):
        if update in frames:
            with torch.no_grad():
                record[update] = [vmap(act, (0, None))(parameters, z) for z in (latents, draw)]
        actions = data[torch.randint(len(data), shape, generator=generator)]
        noise = method.program.sample_noise(len(runs) * BATCH_SIZE, 2, settings, generator)
        noise = {key: value.unflatten(0, shape) for key, value in noise.items()}
        loss = vmap(loss_of)(parameters, actions, noise, weights).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return record


# -------------------- animation

FRAMES, FRAME_MS, LAST_FRAME_MS = 60, 120, 4_000
HOLD = 5  # frames that one dataset action is shown
FLASH = 1  # frames that a region stays yellow after it changed hands
PIXELS = 160  # of the picture of the cells, each way
PLAIN, WON, CHANGED, BORDER = range(4)
CELL_COLORS = ListedColormap(["#ffffff", "#a9d5f5", "#F0E442", "#a0a0a0"])
GREY, DARK = "#8a8a8a", "#333333"


def grid(pixels):
    """Points (pixels * pixels, 2) that fill the square of actions, row by row from below."""
    x = torch.linspace(-1, 1, pixels)
    return torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).reshape(-1, 2)


def draw_square(ax, title, color, filled):
    """The square of actions with the discs of the support, darker where there is more data."""
    for centre, share in zip(CENTRES.tolist(), MODE_SHARES.tolist(), strict=True):
        shade = str(round(0.96 - share, 2)) if filled else "none"
        ax.add_patch(plt.Circle(centre, RADIUS, facecolor=shade, edgecolor=GREY, linewidth=0.8))
    ax.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
    ax.set_title(title, color=color, fontsize=10, fontweight="bold")


class PolicyPanel:
    """Samples of one policy over the data's modes and the contours of Q."""

    def __init__(self, ax, method, weight):
        name = "alpha" if method.program is fql else "bc_coef"
        draw_square(ax, f"{method.name}\n{name} {weight:g}", method.color, filled=True)
        x, q = np.linspace(-1, 1, 100), FixedCritic()(None, grid(100))[0].reshape(100, 100)
        lines = ax.contour(x, x, q, np.arange(0.9, 2, 0.2), colors=GREY, linewidths=0.7)
        ax.clabel(lines, fmt="Q %.1f", fontsize=7.5, colors=DARK)
        self.dots, = ax.plot([], [], ".", color=method.color, markersize=3)

    def draw(self, samples):
        self.dots.set_data(*samples[:SAMPLES_SHOWN].T.numpy())


class RoutingPanel:
    """The candidates of one latent draw, their Voronoi cells, and a dataset action's winner."""

    def __init__(self, ax, method, data):
        self.data, self.owners, self.pixels = data, [], grid(PIXELS)
        self.in_support = ((self.pixels[:, None] - CENTRES).norm(dim=-1) <= RADIUS).any(1)
        draw_square(ax, f"its {method.k} candidates\nof one latent draw", method.color, False)
        self.image = ax.imshow(np.zeros((PIXELS, PIXELS)), CELL_COLORS, vmin=0, vmax=3,
                               extent=(-1, 1, -1, 1), origin="lower", interpolation="nearest")
        dot = {"color": method.color, "marker": "o", "linestyle": "none"}
        self.candidates, = ax.plot([], [], markersize=5, markeredgecolor="white", **dot)
        self.line, = ax.plot([], [], color=DARK, linewidth=2)
        self.winner, = ax.plot([], [], markersize=8, markeredgecolor=DARK, **dot)
        self.action, = ax.plot([], [], "*", color=DARK, markersize=13, markeredgecolor="white")

    def draw(self, frame, candidates):
        """candidates: (K, 2)."""
        action = self.data[frame // HOLD]
        winner = drol.route(candidates[None], action[None])[0]
        owner = drol.route(candidates.expand(len(self.pixels), -1, -1), self.pixels)
        self.owners = [*self.owners, owner][-FLASH - 1:]
        cells = torch.where(owner == winner, WON, PLAIN)
        cells[self.in_support & (owner != self.owners[0])] = CHANGED
        cells, owner = cells.reshape(PIXELS, -1), owner.reshape(PIXELS, -1)
        cells[:, 1:][owner[:, 1:] != owner[:, :-1]] = BORDER
        cells[1:][owner[1:] != owner[:-1]] = BORDER
        self.image.set_data(cells.numpy())
        self.candidates.set_data(*candidates.T.numpy())
        self.line.set_data(*torch.stack([action, candidates[winner]], 1).numpy())
        self.winner.set_data(*candidates[winner, :, None].numpy())
        self.action.set_data(*action[:, None].numpy())


class CurvePanel:
    """One of the NUMBERS against updates, each line labelled at the height where it is now."""

    def __init__(self, ax, number, methods, histories, data_value):
        self.updates, self.data_value = list(histories[0]), data_value
        self.values = [[row[number] for row in history.values()] for history in histories]
        everything = np.array([*np.ravel(self.values), data_value])
        low, self.high = (everything.min(), everything.max()) if number == "mean_q" else (0, 1)
        self.gap = 0.15 * (self.high - low)  # between labels
        last, margin = self.updates[-1], 0.06 * (self.high - low)
        ax.set_title(NUMBERS[number], fontsize=9.5)
        ax.set_xscale("function", functions=(np.sqrt, np.square))  # the first updates change most
        ax.set(xlim=(0, last), ylim=(low - margin, self.high + margin))
        ax.set_xticks([0, last // 25, last // 4, last])
        ax.set_xticks([], minor=True)
        ax.tick_params(labelsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("updates (square-root scale)", fontsize=8.5)
        ax.axhline(data_value, color=DARK, linestyle="--", linewidth=1)
        self.lines = [ax.plot([], [], color=m.color, linewidth=2)[0] for m in methods]
        names = [(m.name.removeprefix("DROL, "), m.color) for m in methods] + [("data", DARK)]
        self.labels = [ax.text(last, 0, f" {name}", color=color, fontsize=8.5, va="center")
                       for name, color in names]

    def draw(self, frame):
        for line, values in zip(self.lines, self.values, strict=True):
            line.set_data(self.updates[:frame + 1], values[:frame + 1])
        heights = np.array([values[frame] for values in self.values] + [self.data_value])
        order = np.argsort(heights, kind="stable")
        # Labels must not lie on one another: push upwards, then back below the upper edge.
        for below, above in zip(order, order[1:], strict=False):
            heights[above] = max(heights[above], heights[below] + self.gap)
        heights[order[-1]] = min(heights[order[-1]], self.high)
        for above, below in zip(order[::-1], order[-2::-1], strict=False):
            heights[below] = min(heights[below], heights[above] - self.gap)
        for label, height in zip(self.labels, heights, strict=True):
            label.set_y(height)


def animate(methods, weights, records, histories, data, out):
    """Writes toy.gif and toy.png. The last method's candidates are shown."""
    figure, numbers = plt.figure(figsize=(8.8, 5.0), dpi=100), measure(data)
    above = figure.add_gridspec(1, 4, left=0.012, right=0.988, top=0.835, bottom=0.415, wspace=0.05)
    below = figure.add_gridspec(1, 3, left=0.045, right=0.935, top=0.28, bottom=0.1, wspace=0.42)
    policies = [PolicyPanel(figure.add_subplot(above[i]), method, weights[i])
                for i, method in enumerate(methods)]
    routing = RoutingPanel(figure.add_subplot(above[3]), methods[-1], data)
    curves = [CurvePanel(figure.add_subplot(below[i]), number, methods, histories, numbers[number])
              for i, number in enumerate(NUMBERS)]
    counter = figure.text(0.012, 0.955, "", fontsize=11, fontweight="bold")
    left, right = {"x": 0.012, "fontsize": 9}, {"x": 0.988, "ha": "right", "fontsize": 9}
    figure.text(y=0.955, s="one state, actions in two dimensions, the same data and Q", **right)
    figure.text(y=0.375, s="discs: the data's five modes, darker: more data; lines: Q", **left)
    figure.text(y=0.375, s="star: dataset action and its winner; yellow: changed hands", **right)
    images = []
    for frame, update in enumerate(tqdm(records[0], "frames", leave=False, disable=None)):
        counter.set_text(f"update {update:,}")
        for policy, record in zip(policies, records, strict=True):
            policy.draw(record[update][0][0])
        routing.draw(frame, records[-1][update][1][0])
        for curve in curves:
            curve.draw(frame)
        figure.canvas.draw()
        images.append(Image.fromarray(np.array(figure.canvas.buffer_rgba())[..., :3]))
    figure.savefig(out / "toy.png", dpi=200)
    plt.close(figure)
    # One palette without dithering for all frames: what stands still then takes no space.
    two = np.concatenate([np.asarray(images[len(images) // 4]), np.asarray(images[-1])])
    palette = Image.fromarray(two).quantize(64)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    images[0].save(out / "toy.gif", save_all=True, append_images=images[1:], loop=0,
                   duration=[FRAME_MS] * (len(images) - 1) + [LAST_FRAME_MS])


def draw_frontier(methods, rows, data_numbers, path):
    """Mean Q against share in the support: a curve per method over its weights, a dot per seed."""
    figure, ax = plt.subplots(figsize=(8.8, 5.0), dpi=100, layout="constrained")
    label = {"textcoords": "offset points", "fontsize": 10}
    for method in methods:
        points = defaultdict(list)
        for row in rows:
            if row["method"] == method.name:
                points[row["weight"]].append([row[number] for number in NUMBERS])
        seeds = np.array(list(points.values()))  # (weights, seeds, numbers)
        q, support, covered = seeds.mean(1).T
        style = {"color": method.color, "marker": method.marker, "linestyle": "none"}
        ax.plot(seeds[..., 1], seeds[..., 0], markersize=4, alpha=0.35, markeredgewidth=0, **style)
        ax.plot(support, q, color=method.color, linewidth=1.5)
        labels = []  # [position, weights]: points that lie together have one label
        for x, y, share, weight in zip(support, q, covered, points, strict=True):
            fill = method.color if share == 1 else "white"
            ax.plot(x, y, markersize=9, markeredgewidth=1.8, markerfacecolor=fill, **style)
            if labels and math.dist(labels[-1][0], (x, y)) < 0.06:
                labels[-1] = [(x, y), f"{labels[-1][1]}, {weight:g}"]
            else:
                labels.append([(x, y), f"{weight:g}"])
        for position, weights in labels:
            ax.annotate(weights, position, (9, -4), color=method.color, **label)
        ax.plot([], [], label=method.name, markersize=9, **style)
    point = (data_numbers["in_support"], data_numbers["mean_q"])
    ax.plot(*point, "*", color=DARK, markersize=15)
    ax.annotate("data", point, (0, 11), color=DARK, ha="center", fontweight="bold", **label)
    ax.set(xlabel="share of samples in the support", ylabel=NUMBERS["mean_q"], xlim=(-0.03, 1.05))
    ax.set_title("Each curve: one method, weight of cloning or distillation at its points. Filled: "
                 "all five\nmodes covered by all seeds. Small and pale: single seeds", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# -------------------- main

def write(path, data, rows):
    """The data's numbers and rows, dicts of the same keys, as a CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows([{"method": "data"} | measure(data), *rows])


def run_animation(args, methods, data):
    frames = np.round(args.updates * np.linspace(0, 1, FRAMES) ** 2).astype(int).tolist()
    weights = [args.alpha if method.program is fql else args.bc_coef for method in methods]
    records, histories, rows = [], [], []
    for method, weight in zip(methods, weights, strict=True):
        run = (weight, args.seed)
        records.append(train(method, data, [run], args.updates, frames, method.name))
        histories.append({update: measure(record[0][0]) for update, record in records[-1].items()})
        rows += [{"method": method.name, "weight": weight, "update": update} | numbers
                 for update, numbers in histories[-1].items()]
        print(method.name, histories[-1][args.updates])
    write(args.out / "toy.csv", data, rows)
    animate(methods, weights, records, histories, data, args.out)


def run_frontier(args, methods, data):
    runs, rows = [(weight, seed) for weight in FRONTIER_WEIGHTS for seed in FRONTIER_SEEDS], []
    for method in methods:
        name = f"frontier, {method.name}"
        samples, _ = train(method, data, runs, args.updates, [args.updates], name)[args.updates]
        rows += [{"method": method.name, "weight": weight, "seed": seed} | measure(actions)
                 for (weight, seed), actions in zip(runs, samples, strict=True)]
    write(args.out / "frontier.csv", data, rows)
    draw_frontier(methods, rows, measure(data), args.out / "frontier.png")


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    counts_right = args.k >= 2 and args.updates >= 1 and args.seed >= 0
    if not (counts_right and 0 <= args.bc_coef < math.inf and 0 <= args.alpha < math.inf):
        sys.exit("error: --k is 2 or more, --updates 1 or more, the other numbers 0 or more")
    torch.set_num_threads(1)  # the numbers then do not depend on the number of cores
    methods, data = make_methods(args.k), sample_data(DATA_SIZE, drol.make_generator("cpu", 0))
    print("data", measure(data))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        run_animation(args, methods, data)
        if args.frontier:
            run_frontier(args, methods, data)
    except OSError as error:
        sys.exit(f"error: {error}")
    print(args.out)


if __name__ == "__main__":
    main()

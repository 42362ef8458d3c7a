"""FQL, flow Q-learning (arXiv 2502.02538), the baseline, as in seohongpark/fql at 719d044 (JAX).

    python fql.py --env-id humanoidmaze-medium --alpha 30

A flow v(s, x, t) carries noise to the dataset's actions in many steps. A one-step actor f(s, z) is
distilled from it and guided by the critic. Acting takes one latent and one pass.

One update, from a batch of (s, a, r, m, s'). Mask m is 0 where s' must not be bootstrapped from.

  latents    (1)  z', x_0, z ~ standard normal in R^A, t ~ uniform in [0, 1], per state
  critic     (2)  y = r + discount * m * agg_i Qbar_i(s', clip(f(s', z'))), agg = mean or min
             (3)  L_critic = mean_{i, batch} (Q_i(s, a) - y)^2
  flow       (4)  x_t = (1 - t) * x_0 + t * a
             (5)  L_flow = mean_{batch, A} (v(s, x_t, t) - (a - x_0))^2
  distill    (6)  e = clip(u_N) with u_0 = z, u_{i+1} = u_i + v(s, u_i, i / N) / N
             (7)  L_distill = mean_{batch, A} (f(s, z) - e)^2
  guidance   (8)  L_q = -mean(q) [/ mean |q| with --normalize-q], q = mean_i Q_i(s, clip(f(s, z)))
  step       (9)  Qbar <- Qbar + tau * (Q - Qbar)
            (10)  one Adam step on L_critic + L_flow + alpha * L_distill + L_q

A is the action dimension, clip is to [-1, 1]. For the actor, e and Q's parameters are fixed.
"""

import copy
import io
import json
import os
import re
import signal
import sys
import traceback
import zlib
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import filelock
import gymnasium
import numpy as np
import pandas as pd
import torch
import tyro
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# ---------- settings
ALGORITHM = "fql"
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass
class Args:
    env_id: str  # cube-double, pen-human-v1, any of OGBench or D4RL, or module:name
    task: Literal[1, 2, 3, 4, 5] | None = None  # OGBench's; unset: its default
    seed: NonNegativeInt = 0  # of weights, batches, latents, evaluation
    steps: PositiveInt | None = None  # updates; unset: 1,000,000, D4RL 500,000
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    compile: bool = False  # the losses: slow start, then faster
    alpha: NonNegativeFloat | None = None  # weight of distillation; unset: as published
    flow_steps: PositiveInt = 10  # Euler steps of the flow
    normalize_q: bool = False  # divide Q's term by mean |Q|: advised for new tasks
    discount: Fraction | None = None  # unset: as published, else 0.99
    q_agg: Literal["mean", "min"] | None = None  # of target critics; unset: as published, else mean
    batch_size: PositiveInt = 256  # transitions per update
    lr: PositiveFloat = 3e-4  # Adam's learning rate
    tau: Fraction = 0.005  # the target critic's step per update
    hidden_dims: tuple[PositiveInt, ...] = (512, 512, 512, 512)  # of every network
    eval_interval: PositiveInt = 100_000  # updates between evaluations
    eval_episodes: PositiveInt = 50  # per evaluation
    eval_envs: PositiveInt = 10  # processes that play at once
    log_interval: PositiveInt = 5_000  # updates between rows of train.csv
    checkpoint_interval: PositiveInt = 5_000  # updates between checkpoints
    data_dir: str | None = None  # the dataset's folder; unset: the benchmark's
    run_dir: Annotated[str, Field(min_length=1)] = "runs"  # folder of all runs
    exp_name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Path(__file__).stem  # begins its folder


# The released commands' default task, discount, q_agg, alpha, by regular expression.
PUBLISHED = {
    "antmaze-large": (1, 0.99, "min", 10.0),
    "antmaze-giant": (1, 0.995, "min", 10.0),
    "humanoidmaze-medium": (1, 0.995, "mean", 30.0),
    "humanoidmaze-large": (1, 0.995, "mean", 30.0),
    "antsoccer-arena": (4, 0.995, "mean", 10.0),
    "scene": (2, 0.99, "mean", 300.0),
    "cube-single": (2, 0.99, "mean", 300.0),
    "cube-double": (2, 0.99, "mean", 300.0),
    "puzzle-3x3": (4, 0.99, "mean", 1e3),
    "puzzle-4x4": (4, 0.99, "mean", 1e3),
    "antmaze-(umaze(-diverse)?|medium-(play|diverse))-v2": (None, 0.99, "mean", 10.0),
    "antmaze-large-(play|diverse)-v2": (None, 0.99, "mean", 3.0),
    "pen-(human|cloned)-v1": (None, 0.99, "min", 1e4),
    "pen-expert-v1": (None, 0.99, "min", 3e3),
    "door-(human|cloned|expert)-v1": (None, 0.99, "min", 3e4),
    "hammer-(human|expert)-v1": (None, 0.99, "min", 3e4),
    "hammer-cloned-v1": (None, 0.99, "min", 1e4),
    "relocate-human-v1": (None, 0.99, "min", 1e4),
    "relocate-(cloned|expert)-v1": (None, 0.99, "min", 3e4),
}
OGBENCH = r"(.*?)(-navigate|-stitch|-explore|-play|-noisy)?(-singletask(-task([1-5]))?-v0)?"
D4RL = r"(antmaze|pen|door|hammer|relocate)-(?!.*singletask).*-v\d"


def resolve(args):
    """Settings with nothing unset, and the run's folder."""
    env_name = row = args.env_id
    family, dataset, _, _, number = re.fullmatch(OGBENCH, env_name).groups()
    import_module("ogbench")  # registers its environments
    known = ":" in row or re.fullmatch(D4RL, row)
    if f"{family}-singletask-v0" in gymnasium.registry:
        usual = "-play" if family.startswith(("cube", "scene", "puzzle")) else "-navigate"
        row = family if dataset in (None, usual) else env_name
        number = number or args.task or PUBLISHED.get(row, [None])[0]
        task = f"-task{number}" if number else ""
        known = env_name = f"{family}{dataset or usual}-singletask{task}-v0"

    if not known or args.task and f"-task{args.task}-" not in env_name:
        sys.exit(f"error: unknown --env-id or --task, {args.env_id}; try {', '.join(PUBLISHED)}")

    rows = [PUBLISHED[name] for name in PUBLISHED if re.fullmatch(name, row)]
    _, discount, q_agg, alpha = [*rows, (None, 0.99, "mean", args.alpha)][0]
    if alpha is None:
        near = max(PUBLISHED, key=lambda name: len(os.path.commonprefix([name, row])))
        sys.exit(f"error: give --alpha; (discount, q_agg, it): {near} has {PUBLISHED[near][1:]}")

    steps = 500_000 if re.fullmatch(D4RL, env_name) else 1_000_000
    usual = {"discount": discount, "q_agg": q_agg, "alpha": alpha, "steps": steps}
    given = {name: value for name, value in vars(args).items() if value is not None}
    args = Args(**usual | given | {"env_id": env_name, "task": None})

    run = f"{args.exp_name}-alpha{args.alpha:g}/seed{args.seed}"
    run_dir = attempt("--run-dir", Path(args.run_dir).expanduser)
    return args, run_dir / env_name / run


# ---------- networks
class MLP(nn.Module):
    """Maps the concatenation of its inputs (..., D_i) to (..., out_dim)."""

    def __init__(self, in_dim, hidden_dims, out_dim, generator, layer_norm=False):
        super().__init__()
        layers = []
        for width in hidden_dims:
            layers += [nn.Linear(in_dim, width), nn.GELU(approximate="tanh")]  # Flax's GELU
            if layer_norm:
                layers.append(nn.LayerNorm(width, eps=1e-6))  # after GELU; Flax's eps
            in_dim = width

        self.layers = nn.Sequential(*layers, nn.Linear(in_dim, out_dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)  # as Flax
                nn.init.zeros_(layer.bias)

    def forward(self, *inputs):
        return self.layers(torch.cat(inputs, -1))


class Critic(nn.Module):
    """Q_1 and Q_2: states (B, O) and actions (B, A) to values (2, B)."""

    def __init__(self, in_dim, hidden_dims, generator):
        super().__init__()
        self.q1 = MLP(in_dim, hidden_dims, 1, generator, layer_norm=True)
        self.q2 = MLP(in_dim, hidden_dims, 1, generator, layer_norm=True)

    def forward(self, s, a):
        return torch.stack([self.q1(s, a), self.q2(s, a)]).squeeze(-1)


def make_networks(observation_dim, action_dim, hidden_dims, generator):
    """Fresh networks, on the CPU: a seed starts alike on every device."""
    in_dim = observation_dim + action_dim
    networks = nn.ModuleDict()
    networks.actor = MLP(in_dim, hidden_dims, action_dim, generator)  # f(s, z)
    networks.critic = Critic(in_dim, hidden_dims, generator)
    networks.flow = MLP(in_dim + 1, hidden_dims, action_dim, generator)  # v(s, x, t)
    networks.target_critic = copy.deepcopy(networks.critic).requires_grad_(False)
    return networks


# ---------- algorithm
# B batch, O observation, A action dimensions; (1) to (10) as at the top.
def sample_latents(*shape, generator):
    """(1) Latents (..., A), standard normal."""
    return torch.randn(shape, generator=generator, device=generator.device)


def sample_noise(args, action_dim, generator):
    """Noise of one update: next_z, x_0, z (B, A), t (B, 1). Other noise is not seeded."""
    shape = args.batch_size, action_dim
    return {
        "next_z": sample_latents(*shape, generator=generator),
        "x_0": sample_latents(*shape, generator=generator),
        "t": torch.rand(shape[0], 1, generator=generator, device=generator.device),
        "z": sample_latents(*shape, generator=generator),
    }


@torch.no_grad()
def flow_action(flow, s, x, flow_steps):
    """(6) The flow's end (B, A) from latents x (B, A) at states (B, O): Euler's method."""
    for i in range(flow_steps):
        t = torch.full_like(x[:, :1], i / flow_steps)
        x = x + flow(s, x, t) / flow_steps
    return x.clamp(-1, 1)


def critic_loss(actor, critic, target_critic, batch, next_z, discount, q_agg):
    """L_critic, which trains the critic alone, and its metrics. next_z: (B, A)."""
    s, a, next_s = batch["observations"], batch["actions"], batch["next_observations"]
    with torch.no_grad():  # (2)
        next_a = actor(next_s, next_z).clamp(-1, 1)  # no target actor, as released
        next_q = target_critic(next_s, next_a)  # (2, B)
        next_q = {"mean": next_q.mean(-2), "min": next_q.amin(-2)}[q_agg]  # (B,)
        y = batch["rewards"] + discount * batch["masks"] * next_q

    q = critic(s, a)  # (2, B)
    loss = (q - y).square().mean()  # (3)
    return loss, {"critic_loss": loss, "q_data": q.mean()}


def flow_loss(flow, batch, x_0, t):
    """L_flow, which trains the flow alone, and its metrics. x_0: (B, A); t: (B, 1)."""
    s, a = batch["observations"], batch["actions"]
    x_t = (1 - t) * x_0 + t * a  # (4)
    loss = (flow(s, x_t, t) - (a - x_0)).square().mean()  # (5)
    return loss, {"flow_loss": loss}


def actor_loss(actor, flow, critic, batch, z, flow_steps, alpha, normalize_q):
    """alpha * L_distill + L_q and its metrics. z: (B, A). Only the actor gets a gradient."""
    s, a = batch["observations"], batch["actions"]
    # Distillation, before clipping: a clipped coordinate is still pulled back.
    action = actor(s, z)
    distill_loss = (action - flow_action(flow, s, z, flow_steps)).square().mean()  # (7)
    # Guidance: the critic's parameters enter as constants.
    constants = {name: x.detach() for name, x in critic.named_parameters()}
    clipped = action.clamp(-1, 1)
    q = torch.func.functional_call(critic, constants, (s, clipped)).mean(-2)  # (B,)
    q_loss = -q.mean() / (q.detach().abs().mean() if normalize_q else 1)  # (8)
    loss = alpha * distill_loss + q_loss
    return loss, {
        "actor_loss": loss,
        "distill_loss": distill_loss,
        "q_loss": q_loss,
        "q": q.mean(),
        "mse": (clipped - a).square().mean(),
    }


def total_loss(networks, batch, noise, args):
    """The sum of all losses at the current parameters, and all metrics."""
    actor, critic, target = networks.actor, networks.critic, networks.target_critic
    settings = args.discount, args.q_agg
    loss_c, metrics_c = critic_loss(actor, critic, target, batch, noise["next_z"], *settings)
    loss_f, metrics_f = flow_loss(networks.flow, batch, noise["x_0"], noise["t"])
    settings = args.flow_steps, args.alpha, args.normalize_q
    loss_a, metrics_a = actor_loss(actor, networks.flow, critic, batch, noise["z"], *settings)
    metrics = metrics_c | metrics_f | metrics_a
    return loss_c + loss_f + loss_a, {name: x.detach() for name, x in metrics.items()}


def update(networks, optimizer, batch, noise, args, loss_fn=total_loss):
    """One update, in place. Returns its metrics: tensors that the next update may overwrite."""
    optimizer.zero_grad()
    loss, metrics = loss_fn(networks, batch, noise, args)
    loss.backward()
    critic, target = networks.critic.parameters(), networks.target_critic.parameters()
    with torch.no_grad():  # (9) before the step, as released
        torch._foreach_lerp_(list(target), list(critic), args.tau)
    optimizer.step()  # (10)
    return metrics


@torch.no_grad()
def act(actor, observation, action_dim, generator):
    """Actions (..., A) for observations (..., O), both NumPy: one latent, one pass."""
    s = torch.as_tensor(observation, dtype=torch.float32, device=generator.device)
    z = sample_latents(*s.shape[:-1], action_dim, generator=generator)
    return actor(s, z).clamp(-1, 1).cpu().numpy()


# ---------- data
ARRAYS = ("observations", "actions", "next_observations", "rewards", "masks")


def attempt(what, function, *args, **options):
    """A function's result, or the program's end with one sentence."""
    try:
        return function(*args, **options)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        sys.exit(f"error: {what}: {error!r:.300} at {place.filename}:{place.lineno}")


def make(env_name, **options):
    """What ogbench, d4rl_compat or one's own module makes of a name: docs/your_task.md."""
    module, _, name = env_name.rpartition(":")
    benchmark = "d4rl_compat" if re.fullmatch(D4RL, env_name) else "ogbench"
    return import_module(module or benchmark).make_env_and_datasets(name, **options)


def load_data(env_name, data_dir):
    """Training data, downloaded if missing, as float32 tensors on the CPU: observations,
    next_observations (N, O), actions (N, A), rewards, masks (N,)."""
    options = {"add_info": True} if "-singletask-" in env_name else {}  # rewards come from it
    if data_dir:
        options["dataset_dir"] = os.path.expanduser(data_dir)
        attempt(data_dir, os.listdir, options["dataset_dir"])

    data = attempt(f"cannot load {env_name}, see docs/data.md", make, env_name, **options)[1]
    data = dict.fromkeys(ARRAYS, np.nan) | dict(data)  # what is missing
    names = data if "add_info" in options else ARRAYS
    data = {key: attempt(f"{key} of {env_name}", np.float32, data[key]) for key in names}

    bad = [key for key in names if not np.isfinite(data[key]).all()]
    s, a, next_s, r, m = shapes = [np.shape(data[key]) for key in ARRAYS]
    fits = len(s) == len(a) == 2 and s == next_s and s[:1] == a[:1] == r == m and s[0] > 0
    if bad or not fits:
        sys.exit(f"error: {env_name}: missing or not finite: {bad}; shapes of {ARRAYS}: {shapes}")
    if np.any(np.abs(data["masks"] - 0.5) > 0.5):
        sys.exit(f"error: {env_name}: masks have to be from 0 to 1")

    data = {key: torch.as_tensor(data[key].copy()) for key in ARRAYS}
    a = data["actions"]
    share = (a.abs() > 1 + 1e-5).any(1).float().mean()
    if share > 0:
        text = f"{share:.1%} of actions are outside [-1, 1]: {a.min():.3g} to {a.max():.3g}"
        if ":" in env_name:
            sys.exit(f"error: {text}; scale them, and the environment")
        print(f"{text}; clipped")

    data["actions"] = a.clamp(-1 + 1e-5, 1 - 1e-5)  # as in the released code
    return data


def sample_batch(data, batch_size, generator):
    """A batch drawn uniformly: a dict like data, with B rows."""
    n = len(data["rewards"])
    index = torch.randint(n, (batch_size,), generator=generator, device=generator.device)
    return {key: value[index] for key, value in data.items()}


# ---------- evaluation
def make_seed(*key):
    """A seed for a key of integers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def make_generator(device, *key):
    """A random generator, seeded by integers."""
    return torch.Generator(device).manual_seed(make_seed(*key))


class Episode(gymnasium.Wrapper):
    """Episodes that their seed determines. A step's info is the score so far."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # OGBench's mazes draw from both of these
        self.action_space.seed(seed)
        self.total = 0.0
        return self.env.reset(seed=seed)[0], {}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        share = info.get("success", info.get("normalized_score"))
        score = self.total if share is None else 100.0 * float(share)
        return observation, reward, terminated, truncated, {"score": score}


def make_env(env_name):
    """An environment; None if one's own module has data alone."""
    env = make(env_name, env_only=True)
    return env and Episode(env)


def make_envs(env_name, count, data):
    """count environments, a process each, after a trial of one; or None."""
    env = attempt(env_name, make_env, env_name)
    if env is None:
        return None

    a, s = np.ones_like(data["actions"][0]), tuple(data["observations"].shape[1:])
    box = gymnasium.spaces.Box(-1, 1, a.shape, env.action_space.dtype or np.float32)
    observation, _ = attempt(f"cannot reset {env_name}", env.reset, seed=0)
    has = np.shape(observation), env.action_space
    if has != (s, box):
        sys.exit(f"error: {env_name} observes and takes {has}, its data {(s, box)}")
    attempt(env_name, env.step, a)

    mode = gymnasium.vector.AutoresetMode.NEXT_STEP  # after an episode's end
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # main unblocks
    makers = [partial(make_env, env_name)] * count
    return gymnasium.vector.AsyncVectorEnv(makers, autoreset_mode=mode)


def evaluate(policy, envs, episodes, key):
    """Means over episodes, seeded by (*key, environment, round)."""
    n, results = envs.num_envs, []
    for number in range(-(-episodes // n)):  # rounded up
        observations, _ = envs.reset(seed=[make_seed(*key, i, number) for i in range(n)])
        score, total = np.zeros((2, n))
        playing = np.ones(n, bool)  # a finished one is reset, which does not count
        while playing.any():
            observations, reward, terminated, truncated, info = envs.step(policy(observations))
            score[playing] = info["score"][playing]
            total[playing] += reward[playing]
            playing &= ~(terminated | truncated)
        results.append([score, total])

    score, total = np.concatenate(results, axis=1)[:, :episodes]
    return {"score": score.mean(), "return": total.mean()}


# ---------- runs
MAY_CHANGE = {"steps", "log_interval", "checkpoint_interval", "data_dir", "run_dir", "versions"}


class Run:
    """What training changes, and its folder."""

    def __init__(self, args, folder, data):
        self.args, self.folder, device = args, folder, args.device
        self.dims = data["observations"].shape[1], data["actions"].shape[1], args.hidden_dims
        self.networks = make_networks(*self.dims, make_generator("cpu", args.seed, 0)).to(device)
        # Adam is per element: one step on a sum of losses is one on each (not so a norm clip)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=args.lr, fused=True)
        self.generators = {  # saved and restored
            "batch": make_generator(device, args.seed, 1),
            "noise": make_generator(device, args.seed, 2),
        }
        self.step, self.rows = 0, {"train": [], "eval": []}

        checksum = sum(zlib.crc32(x.cpu().numpy()) for x in data.values())
        text = f"{len(data['rewards']):,} transitions, checksum {checksum:x}"
        versions = {name: version(name) for name in ("torch", "mujoco", "ogbench")}
        self.config = vars(args) | {"algorithm": ALGORITHM, "dataset": text, "versions": versions}

        if (folder / "checkpoint.pt").exists():
            attempt(f"cannot use {folder}/checkpoint.pt, try another --exp-name", self.load)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        self.writer = SummaryWriter(folder, purge_step=self.step + 1)

    def save(self):
        """Writes both CSV files, then the checkpoint, whole or not at all."""
        for name, rows in self.rows.items():
            if rows:
                pd.DataFrame(rows).to_csv(self.folder / f"{name}.csv", index=False)

        content = self.config | {
            "dims": self.dims,
            "step": self.step,
            "rows": self.rows,
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": {name: x.get_state() for name, x in self.generators.items()},
        }

        buffer = io.BytesIO()  # torch.save to a file hides a full disk
        torch.save(content, buffer)
        (self.folder / "partial").write_bytes(buffer.getbuffer())
        self.writer.flush()
        os.replace(self.folder / "partial", self.folder / "checkpoint.pt")

    def load(self):
        path, args = self.folder / "checkpoint.pt", self.args
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in self.config.items():
            if name not in MAY_CHANGE and saved.get(name) != value:
                text = f"{name} {saved.get(name)}, not {value}"
                sys.exit(f"error: {path} has {text}; use that or another --exp-name")

        if saved["step"] > args.steps:
            sys.exit(f"error: {path} has {saved['step']} updates, --steps are fewer")
        self.step, self.rows = saved["step"], saved["rows"]
        if self.step < args.steps:  # the evaluation at a former end is dropped
            self.rows["eval"] = [x for x in self.rows["eval"] if not x["step"] % args.eval_interval]

        self.networks.load_state_dict(saved["networks"])
        self.optimizer.load_state_dict(saved["optimizer"])  # with its learning rate
        for name, generator in self.generators.items():
            generator.set_state(saved["generators"][name])

    def record(self, name, metrics):
        """Adds a row to a CSV file and to TensorBoard."""
        row = {key: float(value) for key, value in metrics.items()}
        for key, value in row.items():
            self.writer.add_scalar(f"{name}/{key}", value, self.step)
        self.rows[name].append({"step": self.step, **row})


def load_policy(path, device="cpu", seed=0):
    """A checkpoint's policy: observations (..., O) to actions (..., A), both NumPy."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["algorithm"] != ALGORITHM:
        raise ValueError(f"{path} was made by {saved['algorithm']}.py")

    actor = make_networks(*saved["dims"], torch.Generator()).actor.to(device)
    actor.load_state_dict({x: saved["networks"][f"actor.{x}"] for x in actor.state_dict()})
    generator = make_generator(device, seed, 5)
    return partial(act, actor, action_dim=saved["dims"][1], generator=generator)


# ---------- training
def train(run, data, envs):
    """Trains to the end. Without envs nothing is evaluated."""
    args, actor, action_dim = run.args, run.networks.actor, run.dims[1]
    loss_fn = total_loss
    if args.compile:
        loss_fn = torch.compile(loss_fn, mode="reduce-overhead")  # CUDA graphs

    for step in tqdm(range(run.step + 1, args.steps + 1), disable=None):
        batch = sample_batch(data, args.batch_size, run.generators["batch"])
        noise = sample_noise(args, action_dim, run.generators["noise"])  # not in compiled code
        metrics = update(run.networks, run.optimizer, batch, noise, args, loss_fn)
        run.step = step

        evaluation = step % args.eval_interval == 0 or step == args.steps
        checkpoint = step % args.checkpoint_interval == 0 or evaluation
        if checkpoint and not all(x.isfinite().all() for x in run.networks.parameters()):
            sys.exit(f"error: diverged by update {step:,}; try a lower --lr with an --exp-name")
        if step % args.log_interval == 0:
            run.record("train", metrics)
        if evaluation and envs is not None:
            generator = make_generator(args.device, args.seed, 3, step)
            policy = partial(act, actor, action_dim=action_dim, generator=generator)
            run.record("eval", evaluate(policy, envs, args.eval_episodes, (args.seed, step)))
            tqdm.write(f"update {step:,}: score {run.rows['eval'][-1]['score']:.1f}")
        if checkpoint:
            run.save()  # with this update's rows


# ---------- main
def main(argv=None):
    os.environ["MUJOCO_GL"] = "disabled"  # no rendering
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # no Box warnings
    args = tyro.cli(Args, args=argv, description=(__doc__ or "").partition("\n\n")[0])
    args, folder = resolve(args)
    for name, value in (vars(args) | {"folder": folder}).items():
        print(f"  {name:<20} {value}")

    attempt("--run-dir", folder.mkdir, parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{folder}.lock", timeout=0, mode=0o666)  # shared
    attempt("no lock: is another process at work?", lock.acquire)
    envs = None
    try:
        data = load_data(args.env_id, args.data_dir)
        envs = make_envs(args.env_id, args.eval_envs, data)  # before CUDA starts
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        data = {key: attempt("--device", x.to, args.device) for key, x in data.items()}
        run = Run(args, folder, data)
        print(f"update {run.step:,}, {run.config['dataset']}{'' if envs else '; no evaluation'}")
        train(run, data, envs)
    finally:
        if envs:
            for process in envs.processes:  # close() waits for one that hangs
                process.kill()
            envs.closed = True
        lock.release()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on")
        sys.exit(130)

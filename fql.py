"""FQL, flow Q-learning (arXiv 2502.02538), in one file. It is the baseline of drol.py.

    $ python fql.py --env-id humanoidmaze-medium --alpha 30

A flow v(s, x, t) carries noise to the dataset's actions. A one-step actor f(s, z) is distilled from
it and guided by the critic. One update, from a batch (s, a, r, m, s'), m = 0: do not bootstrap:

  1. sample_latents: z standard normal in R^A, A action dimensions
  2. critic_loss: a' = clip(f(s', z')), y = r + discount * m * agg_i Qbar_i(s', a'),
     L_critic = mean_{i, batch} (Q_i(s, a) - y)^2, agg = mean or min (q_agg)
  3. flow_loss: x_t = (1 - t) x_0 + t a, x_0 normal, t uniform in [0, 1],
     L_flow = mean_{batch, A} (v(s, x_t, t) - (a - x_0))^2
  4. flow_action: from x = z, x <- x + v(s, x, i/N) / N for i = 0..N-1; clip; held constant
  5. actor_loss: L_actor = alpha * mean_{batch, A} (f(s, z) - flow_action)^2 - mean(q),
     q = mean_i Q_i(s, clip(f(s, z))) (actor_q_agg); the critics are held constant
  6. update: one Adam step on L_critic + L_flow + L_actor, all at the same parameters;
     Qbar <- Qbar + tau * (Q - Qbar), with Q from before that step
"""

import copy
import csv
import difflib
import hashlib
import json
import os
import pickle
import shutil
import signal
import sys
import time
import warnings
import zipfile
import zlib
from collections import namedtuple
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import filelock
import gymnasium
import numpy as np
import ogbench
import torch
import tyro
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


# -------------------- settings
@dataclass
class Args:
    env_id: str  # family (cube-double), full name, or D4RL task (needs tools/)
    task: Literal[1, 2, 3, 4, 5] | None = None  # OGBench's task; unset: the family's default
    seed: int = 0  # of all that is random
    alpha: float | None = None  # higher: closer to the data; unset: as published
    flow_steps: int = 10  # Euler steps from a latent to the flow's endpoint
    discount: float | None = None  # of rewards; unset: as published
    q_agg: Literal["mean", "min"] | None = None  # of target critics; unset: as published
    actor_q_agg: Literal["mean", "min"] = "mean"  # of the critics in the actor loss
    normalize_q: bool = False  # divide the Q term by the batch mean of |q|
    steps: int | None = None  # updates in all; unset: 1M, D4RL 500,000
    batch_size: int = 256  # transitions per update
    lr: float = 3e-4  # Adam's learning rate
    tau: float = 0.005  # update rate of the target critic
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # of every network
    eval_interval: int = 100_000  # updates between evaluations
    eval_episodes: int = 50  # episodes per evaluation
    eval_envs: int = 10  # processes that share the episodes
    log_interval: int = 5_000  # updates between rows of train.csv
    checkpoint_interval: int = 10_000  # updates between checkpoints
    snapshot_interval: int = 0  # updates between kept checkpoints; 0: none
    data_dir: Path | None = None  # of datasets; unset: ~/.ogbench/data or ~/.d4rl/datasets
    run_dir: Path = Path("runs")  # folder of the runs
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if there is one
    compile: Literal["on", "off"] = "off"  # on: faster on a CPU; needs g++
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False  # delete the run's folder and start anew
    track: tyro.conf.FlagCreatePairsOff[bool] = False  # log to Weights & Biases (pip install wandb)
    wandb_project_name: str = "drol"  # project of --track
    wandb_entity: str | None = None  # team of --track


# -------------------- networks
class MLP(nn.Module):
    """Joins its inputs (..., D_i) to one vector and maps it to (..., out_dim)."""

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
                nn.init.xavier_uniform_(layer.weight, generator=generator)  # as released
                nn.init.zeros_(layer.bias)

    def forward(self, *inputs):
        return self.layers(torch.cat(inputs, -1))


class Critic(nn.ModuleList):
    """Q_1 and Q_2: observations (B, O) and actions (B, A) to values (2, B)."""

    def __init__(self, in_dim, hidden_dims, generator):
        super().__init__(MLP(in_dim, hidden_dims, 1, generator, layer_norm=True) for _ in range(2))

    def forward(self, s, a):
        return torch.stack([q(s, a).squeeze(-1) for q in self])


def make_networks(observation_dim, action_dim, hidden_dims, generator):
    """Fresh networks by name. A generator on the CPU makes a seed start alike on every device."""
    in_dim = observation_dim + action_dim
    networks = nn.ModuleDict()
    networks["actor"] = MLP(in_dim, hidden_dims, action_dim, generator)  # f(s, z)
    networks["critic"] = Critic(in_dim, hidden_dims, generator)
    networks["flow"] = MLP(in_dim + 1, hidden_dims, action_dim, generator)  # v(s, x, t)
    networks["target_critic"] = copy.deepcopy(networks["critic"]).requires_grad_(False)
    return networks


# -------------------- algorithm
# B batch, O observation and A action dimensions.
def sample_latents(*shape, generator):
    """Latents of a shape (..., A), standard normal."""
    return torch.randn(shape, generator=generator, device=generator.device)


def sample_noise(batch_size, action_dim, args, generator):
    """All that is random in one update: next_latents, x_0 and latents (B, A), and t (B, 1)."""
    next_latents = sample_latents(batch_size, action_dim, generator=generator)
    x_0 = sample_latents(batch_size, action_dim, generator=generator)
    t = torch.rand(batch_size, 1, generator=generator, device=generator.device)
    latents = sample_latents(batch_size, action_dim, generator=generator)
    return {"next_latents": next_latents, "x_0": x_0, "t": t, "latents": latents}


@torch.no_grad()
def flow_action(flow, s, z, flow_steps):
    """The flow's endpoint (B, A) from z (B, A) at states (B, O), by Euler's method, no graph."""
    x = z
    for i in range(flow_steps):
        # x <- x + v(s, x, i/N) / N
        x = x + flow(s, x, torch.full_like(x[:, :1], i / flow_steps)) / flow_steps
    return x.clamp(-1, 1)


def critic_loss(actor, critic, target_critic, batch, next_z, discount, q_agg):
    """TD loss of both critics, and its metrics. next_z: (B, A). batch: observations,
    actions, next_observations, rewards and masks (B,), 0 only where the task is over."""
    with torch.no_grad():
        next_a = actor(batch["next_observations"], next_z).clamp(-1, 1)
        next_q = target_critic(batch["next_observations"], next_a)  # (2, B)
        next_q = next_q.amin(0) if q_agg == "min" else next_q.mean(0)
        # y = r + discount * m * agg_i Qbar_i(s', a')
        y = batch["rewards"] + discount * batch["masks"] * next_q
    q = critic(batch["observations"], batch["actions"])  # (2, B)
    # L_critic = mean_{i, batch} (Q_i(s, a) - y)^2
    loss = (q - y).square().mean()
    return loss, {"critic_loss": loss, "q_data": q.mean()}


def flow_loss(flow, batch, x_0, t):
    """Flow-matching loss, and its metrics. x_0: (B, A) noise; t: (B, 1) in [0, 1]."""
    s, a = batch["observations"], batch["actions"]
    x_t = (1 - t) * x_0 + t * a
    # L_flow = mean_{batch, A} (v(s, x_t, t) - (a - x_0))^2
    loss = (flow(s, x_t, t) - (a - x_0)).square().mean()
    return loss, {"flow_loss": loss}


def actor_loss(actor, flow, critic, batch, z, flow_steps, alpha, actor_q_agg, normalize_q):
    """Distillation of the flow plus the Q term, and its metrics. z: (B, A)."""
    s = batch["observations"]
    pi = actor(s, z)
    # L_distill = mean_{batch, A} (f(s, z) - flow_action)^2
    distill_loss = (pi - flow_action(flow, s, z, flow_steps)).square().mean()
    # Q guides the actor and is not trained by it: its parameters enter as constants.
    constants = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    q = torch.func.functional_call(critic, constants, (s, pi.clamp(-1, 1)))  # (2, B)
    q = q.amin(0) if actor_q_agg == "min" else q.mean(0)
    # L_Q = -mean(q), with normalize_q divided by max(mean |q|, 1e-6), held constant
    q_loss = -q.mean()
    if normalize_q:
        q_loss = q_loss / q.detach().abs().mean().clamp(min=1e-6)
    # L_actor = alpha * L_distill + L_Q
    loss = alpha * distill_loss + q_loss
    metrics = {"actor_loss": loss, "distill_loss": distill_loss, "q_loss": q_loss, "q": q.mean()}
    return loss, metrics


def losses(networks, batch, noise, args):
    """L_critic + L_flow + L_actor, all at the same parameters, and the metrics of all."""
    actor, critic, target_critic = networks["actor"], networks["critic"], networks["target_critic"]
    flow = networks["flow"]
    loss_c, metrics_c = critic_loss(
        actor, critic, target_critic, batch, noise["next_latents"], args.discount, args.q_agg
    )
    loss_f, metrics_f = flow_loss(flow, batch, noise["x_0"], noise["t"])
    loss_a, metrics_a = actor_loss(
        actor, flow, critic, batch, noise["latents"], args.flow_steps, args.alpha, args.actor_q_agg,
        args.normalize_q,
    )
    return loss_c + loss_f + loss_a, metrics_c | metrics_f | metrics_a


def update(networks, optimizer, batch, noise, args, loss_fn=losses):
    """One gradient step of every network, in place. Returns the metrics, as tensors."""
    loss, metrics = loss_fn(networks, batch, noise, args)
    optimizer.zero_grad()
    loss.backward()
    critic, target_critic = networks["critic"], networks["target_critic"]
    with torch.no_grad():  # as in the released code, the target follows Q from before the step
        for target, source in zip(target_critic.parameters(), critic.parameters(), strict=True):
            target.lerp_(source, args.tau)
    optimizer.step()
    return {name: value.detach() for name, value in metrics.items()}


@torch.no_grad()
def diagnostics(actor, batch, noise):
    """Squared distance of a fresh sample from the dataset action, per action dimension."""
    fresh = actor(batch["observations"], noise["next_latents"]).clamp(-1, 1)
    return {"mse": (fresh - batch["actions"]).square().mean()}


@torch.no_grad()
def act(actor, observation, action_dim, generator):
    """Actions (..., A) for observations (..., O), both NumPy: one latent, one pass, clipped."""
    s = torch.as_tensor(observation, dtype=torch.float32, device=generator.device)
    z = sample_latents(*s.shape[:-1], action_dim, generator=generator)
    return actor(s, z).clamp(-1, 1).cpu().numpy()


# -------------------- data
BROKEN_FILE = (OSError, EOFError, KeyError, ValueError, IndexError, zipfile.BadZipFile, zlib.error)


class UserError(Exception):
    """A mistake that the user can correct. The command line prints its message alone."""


def benchmark_of(name):
    """ogbench, or our module with the same functions for D4RL."""
    if "-singletask" in name:
        return ogbench
    from tools import d4rl_compat

    return d4rl_compat


class Episode(gymnasium.wrappers.RecordEpisodeStatistics):
    """Its episode depends on its seed alone. Info: score in %; at the end return r, length l."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # OGBench's mazes draw from both
        self.unwrapped.action_space.seed(seed)
        return super().reset(seed=seed)[0], {}

    def step(self, action):
        *result, info = super().step(action)
        score = info["success"] if "success" in info else info["normalized_score"]
        return *result, {"score": 100.0 * score, **info.get("episode", {})}


def make_env(name):
    """The environment of a full name."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # else it warns of Box's precision
    warnings.filterwarnings("ignore", module="glfw")  # and glfw of a missing display
    make = benchmark_of(name).make_env_and_datasets
    return Episode(make(name, env_only=True, disable_env_checker=True))


def load_data(task, data_dir, device):
    """The training data as float32 tensors on the device, and facts about it. observations and
    next_observations (N, O); actions (N, A); rewards and masks (N,). Raises UserError."""
    benchmark, env = benchmark_of(task.name), make_env(task.name)
    files = [f"{task.dataset}.npz", f"{task.dataset}-val.npz"]  # the second is not used
    if benchmark is not ogbench:
        files = [env.unwrapped.dataset_file]
    path = data_dir / files[0]
    try:
        if not all((data_dir / file).exists() for file in files):
            data_dir.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(data_dir / f"{task.dataset}.lock"):  # of several, one downloads
                benchmark.download_datasets([task.dataset], data_dir)
        options = {"dataset_only": True, "cur_env": env}
        data, _ = benchmark.make_env_and_datasets(task.name, data_dir, **options)
        if benchmark is ogbench:
            source = str(np.load(path).get("source", "official or unknown"))
        else:
            source = benchmark.source_of_dataset(path)
    except BROKEN_FILE as error:
        advice = f"delete damaged files, or put {' and '.join(files)} into {data_dir}"
        if benchmark is ogbench:
            advice += "; mirror: huggingface.co/datasets/zhouzypaul/ogbench_datasets (docs/data.md)"
        raise UserError(f"{task.dataset} cannot be loaded ({error!r}); {advice}") from error
    for key, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if data[key].shape[1:] != space.shape or not np.isfinite(data[key]).all():
            raise UserError(f"{path}: {key} are damaged or another task's; delete it")
    data["actions"] = data["actions"].clip(-1 + 1e-5, 1 - 1e-5)  # as in the released code
    digest = hashlib.sha256()
    for key in ("observations", "actions", "rewards", "masks"):
        digest.update(np.ascontiguousarray(data[key]))
    terminals = data.pop("terminals")
    facts = {
        "source": source,
        "fingerprint": digest.hexdigest()[:16],
        "simulator": getattr(benchmark, "SIMULATOR", f"mujoco {version('mujoco')}"),
        "episodes": int(terminals.sum()),
        "transitions": len(terminals),
    }
    return {key: torch.from_numpy(value).to(device) for key, value in data.items()}, facts


def sample_batch(data, batch_size, generator):
    """A batch drawn uniformly: a dict like data, with B rows."""
    n, device = len(data["rewards"]), generator.device
    index = torch.randint(n, (batch_size,), generator=generator, device=device)
    return {key: tensor[index] for key, tensor in data.items()}


# -------------------- evaluation
def make_seed(*key):
    """A seed for a key of integers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def make_generator(device, *key):
    """A random generator, seeded by a key of integers."""
    return torch.Generator(device).manual_seed(make_seed(*key))


def evaluate(policy, envs, episodes, key, stop):
    """Means over episodes, shared out to envs, each seeded by (*key, environment, episode)."""
    count = envs.num_envs
    share = np.full(count, episodes // count)
    share[: episodes % count] += 1
    played = np.zeros(count, int)
    needs_reset = np.ones(count, bool)
    results = []  # score, return, length
    while (played < share).any():
        stop.check()
        if needs_reset.any():
            seeds = [make_seed(*key, i, n) for i, n in enumerate(played.tolist())]
            observations, _ = envs.reset(seed=seeds, options={"reset_mask": needs_reset})
        observations, _, terminated, truncated, info = envs.step(policy(observations))
        needs_reset = terminated | truncated
        for i in np.flatnonzero(needs_reset & (played < share)):  # others do not count
            results.append([info[name][i] for name in ("score", "r", "l")])
        played += needs_reset
    score, returned, steps = np.mean(results, axis=0).tolist()
    std = np.std(results, axis=0)[1].item()
    return {"score": score, "return": returned, "return_std": std, "length": steps}


# -------------------- checkpoints and records
class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that they end a run only where it can be saved."""

    def __init__(self):
        self.number = 0
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {n: signal.signal(n, self.receive) for n in numbers}

    def receive(self, number, frame):
        self.number = number

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def check(self):
        if self.number:
            sys.exit(128 + self.number)


def load_checkpoint(path):
    """What Run.save wrote, on the CPU. Raises UserError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        algorithm = saved["algorithm"]
    except (*BROKEN_FILE, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        advice = "if it is damaged, restore it or give --overwrite"
        raise UserError(f"checkpoint {path} cannot be read ({error!r:.99}); {advice}") from error
    if algorithm != ALGORITHM:
        raise UserError(f"checkpoint {path} is {algorithm}.py's, not {ALGORITHM}.py's")
    return saved


def load_policy(path, device="cpu", seed=0):
    """A checkpoint's policy, from observations to actions, by its actor. Raises UserError."""
    saved = load_checkpoint(path)
    actor = make_networks(*saved["dims"], torch.Generator())["actor"].to(device)
    actor.load_state_dict({key: saved["networks"][f"actor.{key}"] for key in actor.state_dict()})
    generator = make_generator(device, seed)
    return lambda observation: act(actor, observation, saved["dims"][1], generator)


class Run:
    """What training changes, and the folder that keeps it."""

    def __init__(self, args, config, folder, dims, saved):
        self.args, self.config, self.folder, self.dims = args, config, folder, dims
        self.networks = make_networks(*dims, make_generator("cpu", args.seed, 0)).to(args.device)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=args.lr, fused=True)
        self.batch_generator = make_generator(args.device, args.seed, 1)
        self.noise_generator = make_generator(args.device, args.seed, 2)
        self.step, self.rows = 0, {"train": [], "eval": []}
        if saved:
            self.networks.load_state_dict(saved["networks"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.batch_generator.set_state(saved["batch_generator"])
            self.noise_generator.set_state(saved["noise_generator"])
            self.step, self.rows = saved["step"], saved["rows"]
            # The last evaluation of fewer --steps may be one that an uninterrupted run has not.
            evaluations = self.rows["eval"]
            self.rows["eval"] = [x for x in evaluations if x["step"] % args.eval_interval == 0]
            print(f"resumed at update {self.step:,}")
        self.writer = SummaryWriter(folder, purge_step=self.step + 1)
        table = [f"|{name}|{value}|" for name, value in config["settings"].items()]
        self.writer.add_text("hyperparameters", "\n".join(["|setting|value|", "|-|-|", *table]))

    def save(self, name="checkpoint.pt"):
        content = self.config | {
            "dims": self.dims,
            "step": self.step,
            "rows": self.rows,
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_generator": self.batch_generator.get_state(),
            "noise_generator": self.noise_generator.get_state(),
        }
        with open(self.folder / "partial", "wb") as file:
            torch.save(content, file)
        os.replace(self.folder / "partial", self.folder / name)  # so that a checkpoint is whole

    def record(self, name, row):
        """Adds a row to train.csv or eval.csv, and to TensorBoard."""
        rows = self.rows[name]
        rows.append({"step": self.step, **row})
        with open(self.folder / f"{name}.csv", "w", newline="") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        for key, value in row.items():
            self.writer.add_scalar(f"{name}/{key}", value, self.step)

    def evaluate_if_due(self, envs, stop):
        """Evaluates, records and saves at every eval_interval and at the end, once per step."""
        args, step, actor = self.args, self.step, self.networks["actor"]
        due = step > 0 and (step % args.eval_interval == 0 or step >= args.steps)
        if due and step not in [row["step"] for row in self.rows["eval"]]:
            generator = make_generator(args.device, args.seed, 3, step)
            policy = lambda observation: act(actor, observation, self.dims[1], generator)
            row = evaluate(policy, envs, args.eval_episodes, (args.seed, step), stop)
            self.record("eval", row)
            self.save()
            tqdm.write(f"update {step:,}: score {row['score']:.1f}")


# -------------------- training
def train(args, config, folder, data, saved=None):
    """Trains a new or a saved run; a signal saves and ends it. Returns the rows of eval.csv."""
    stop = StopSignal()  # first: the environments inherit it
    makers = [lambda: make_env(config["env"]["name"])] * min(args.eval_envs, args.eval_episodes)
    envs = gymnasium.vector.AsyncVectorEnv(makers, autoreset_mode="Disabled")
    observation_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]
    run = Run(args, config, folder, (observation_dim, action_dim, args.hidden_dims), saved)
    loss_fn = torch.compile(losses) if args.compile == "on" else losses
    pbar = tqdm(total=args.steps, initial=run.step, unit=" updates", disable=None)
    try:
        run.evaluate_if_due(envs, stop)  # a run that was stopped in an evaluation repeats it
        first, start = run.step, time.perf_counter()
        while run.step < args.steps:
            batch = sample_batch(data, args.batch_size, run.batch_generator)
            noise = sample_noise(args.batch_size, action_dim, args, run.noise_generator)
            log = (run.step + 1) % args.log_interval == 0
            metrics = diagnostics(run.networks["actor"], batch, noise) if log else {}
            metrics |= update(run.networks, run.optimizer, batch, noise, args, loss_fn)
            run.step += 1
            pbar.update()
            if log:
                values = torch.stack(list(metrics.values())).tolist()  # one transfer for all
                row = dict(zip(metrics, values, strict=True))
                rate = (run.step - first) / (time.perf_counter() - start)
                run.record("train", {"updates_per_second": rate, **row})
                last = run.rows["eval"][-1]["score"] if run.rows["eval"] else "none"
                pbar.set_postfix(actor_loss=row["actor_loss"], score=last)
            if args.snapshot_interval and run.step % args.snapshot_interval == 0:
                run.save(f"snapshot{run.step}.pt")
            run.evaluate_if_due(envs, stop)
            if run.step % args.checkpoint_interval == 0:
                run.save()
            stop.check()
    except (SystemExit, EOFError, ConnectionError):  # or a process of envs died
        run.save()
        print(f"stopped at update {run.step:,} and saved; the same command goes on, no --overwrite")
        raise
    finally:
        pbar.close()
        for process in envs.processes:  # close() would wait for one that has died
            process.kill()
        run.writer.close()
        stop.restore()
    return run.rows["eval"]


# -------------------- published settings
ALGORITHM = "fql"
Task = namedtuple("Task", "name dataset number family folder")
Preset = namedtuple(
    "Preset", "dataset default_task discount q_agg alpha origin", defaults=["published"]
)
PRESETS = {
    "antmaze-large": Preset("navigate", 1, 0.99, "min", 10.0),
    "antmaze-giant": Preset("navigate", 1, 0.995, "min", 10.0),
    "humanoidmaze-medium": Preset("navigate", 1, 0.995, "mean", 30.0),
    "humanoidmaze-large": Preset("navigate", 1, 0.995, "mean", 30.0),
    "antsoccer-arena": Preset("navigate", 4, 0.995, "mean", 10.0),
    "scene": Preset("play", 2, 0.99, "mean", 300.0),
    "cube-single": Preset("play", 2, 0.99, "mean", 300.0),
    "cube-double": Preset("play", 2, 0.99, "mean", 300.0),
    "puzzle-3x3": Preset("play", 4, 0.99, "mean", 1000.0),
    "puzzle-4x4": Preset("play", 4, 0.99, "mean", 1000.0),
    "pointmaze-medium": Preset("navigate", 1, 0.995, "mean", 10.0, "not published"),
}
D4RL = {  # alpha; the rest stands in find_task
    "antmaze-umaze-v2": 10.0, "antmaze-umaze-diverse-v2": 10.0, "antmaze-medium-play-v2": 10.0,
    "antmaze-medium-diverse-v2": 10.0, "antmaze-large-play-v2": 3.0,
    "antmaze-large-diverse-v2": 3.0,
    "pen-human-v1": 10000.0, "pen-cloned-v1": 10000.0, "pen-expert-v1": 3000.0,
    "door-human-v1": 30000.0, "door-cloned-v1": 30000.0, "door-expert-v1": 30000.0,
    "hammer-human-v1": 30000.0, "hammer-cloned-v1": 10000.0, "hammer-expert-v1": 30000.0,
    "relocate-human-v1": 10000.0, "relocate-cloned-v1": 30000.0, "relocate-expert-v1": 30000.0,
}
RANGES = {"seed": (0, 1e9), "snapshot_interval": (0, 1e9), "alpha": (0, 1e9), "lr": (0, 1),
          "tau": (0, 1), "discount": (0, 1)}  # of every other number: 1 to 1e9
NAMED = ("alpha", "discount", "q_agg", "actor_q_agg", "normalize_q", "flow_steps",
         "batch_size", "lr", "tau", "hidden_dims")  # in a folder's name, where not standard
FIXED = (*NAMED, "eval_interval", "eval_episodes", "eval_envs", "device", "compile")  # in a run


def find_task(env_id, number=None):
    """The Task that --env-id and --task name, and its Preset. Raises UserError."""
    if env_id in D4RL:
        q_agg = "mean" if "antmaze" in env_id else "min"
        preset = Preset("", None, 0.99, q_agg, D4RL[env_id])
        return Task(env_id, env_id, None, env_id, env_id), preset
    for family, preset in PRESETS.items():
        dataset = f"{family}-{preset.dataset}"
        if env_id in (family, f"{dataset}-singletask-v0"):
            env_id = f"{dataset}-singletask-task{number or preset.default_task}-v0"
        for n in range(1, 6):
            if env_id == f"{dataset}-singletask-task{n}-v0":
                return Task(env_id, f"{dataset}-v0", n, family, f"{dataset}-task{n}"), preset
    near = difflib.get_close_matches(env_id, [*PRESETS, *D4RL], n=3, cutoff=0)
    raise UserError(f"--env-id {env_id} is not known; the nearest ids are {', '.join(near)}")


def check_args(args):
    """Raises UserError for a number out of its range, or what this machine cannot do."""
    for name, value in vars(args).items():
        low, high = RANGES.get(name, (1, 1e9))
        numbers = value or (0,) if isinstance(value, tuple) else [value]  # () is refused as 0 is
        for x in numbers:
            if type(x) in (int, float) and not low <= x <= high:
                raise UserError(f"--{name.replace('_', '-')} {x}: give {low} to {high:g}")
    if args.compile == "on" and not (os.environ.get("CXX") or shutil.which("g++")):
        raise UserError("--compile on: install g++ first")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; give auto or cpu")


def resolve(args, typed):
    """Fills in what is unset, in place. Returns the Task and origins. Raises UserError."""
    check_args(args)
    task, preset = find_task(args.env_id, args.task)
    if args.task not in (None, task.number):
        raise UserError(f"--task {args.task} contradicts --env-id {args.env_id}; leave one out")
    origin = {name: "command line" if name in typed else "default" for name in vars(args)}
    for name in ("discount", "q_agg", "alpha"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(preset, name))
            origin[name] = preset.origin
    args.task = task.number
    args.steps = args.steps or (1_000_000 if task.number else 500_000)
    folder = "~/.ogbench/data" if task.number else "~/.d4rl/datasets"
    args.data_dir = Path(args.data_dir or folder).expanduser()
    args.run_dir = args.run_dir.expanduser()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return task, origin


def run_folder(args, task):
    """<run_dir>/<dataset>-task<n>/<method>[-<setting><value> ...]/seed<s>."""
    _, preset = find_task(task.name)
    standard = vars(Args(args.env_id)) | preset._asdict()
    method = "fql"
    for name in NAMED:
        value = getattr(args, name)
        if value != standard[name]:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            if name == "hidden_dims" and len(set(value)) == 1:
                text = f"{value[0]}x{len(value)}"
            method += f"-{name}{text.strip('()').replace(', ', '_')}"
    return args.run_dir / task.folder / method / f"seed{args.seed}"


def check_same(folder, saved, wanted):
    """Raises UserError where a saved run's settings or data were others."""
    for name, value in wanted.items():
        if saved.get(name) != value:
            advice = "give that, another --run-dir, or --overwrite to delete it"
            raise UserError(f"{folder} holds {name} {saved.get(name)}, not {value}; {advice}")


def print_score(folder, task, rows):
    """Prints the score as the papers take it, and further commands."""
    scores = [row["score"] for row in (rows[-3:] if task.number else rows[-1:])]
    which = f"the mean of {len(scores)} evaluation(s) up to update {rows[-1]['step']:,}"
    print(f"score {np.mean(scores):.1f}, {which}")
    print(f"run folder: {folder}")
    print(f"python tools/rollout.py {folder}/checkpoint.pt --video out.gif")
    print(f"tensorboard --logdir {folder}")


# -------------------- main
def run_or_go_on(args, task, origin, folder):
    """Trains the run of a folder, unless it has finished. Returns the rows of eval.csv."""
    settings = json.loads(json.dumps(vars(args), default=str))  # in plain types
    saved = None
    if (folder / "checkpoint.pt").exists() and not args.overwrite:
        saved = load_checkpoint(folder / "checkpoint.pt")
        check_same(folder, saved["settings"], {name: settings[name] for name in FIXED})
        rows = saved["rows"]["eval"]
        if rows and rows[-1]["step"] >= args.steps:
            print("this run has finished; more --steps continue it")
            return rows
    data, facts = load_data(task, args.data_dir, args.device)
    for name, value in facts.items():
        print(f"  {name:<20} {value}")
    if saved:
        check_same(folder, saved["data"], facts)
    if args.track:
        import wandb

        wandb.init(project=args.wandb_project_name, entity=args.wandb_entity, name=str(folder),
                   dir=args.run_dir, config=settings, sync_tensorboard=True)
    if args.overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    if not saved:  # of a run whose checkpoint is gone
        for name in ("train.csv", "eval.csv"):
            (folder / name).unlink(missing_ok=True)
    names = {"name": task.name, "dataset": task.dataset, "task": task.number, "preset": task.family}
    config = {
        "algorithm": ALGORITHM,
        "env": names,
        "settings": settings,
        "origin": origin,
        "versions": {name: version(name) for name in ("torch", "mujoco", "ogbench")},
        "data": facts,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return train(args, config, folder, data, saved)


def main(argv=None):
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    flags = [x.split("=")[0].removeprefix("--") for x in argv if x.startswith("--")]
    typed = {flag.removeprefix("no-").replace("-", "_") for flag in flags}
    task, origin = resolve(args, typed)
    folder = run_folder(args, task)
    print(f"{ALGORITHM.upper()} on {task.name}")
    for name, value in vars(args).items():
        print(f"  {name:<20} {value!s:<22} {origin[name]}")
    if args.device == "cuda":
        print(torch.cuda.get_device_name())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock", timeout=0):
        rows = run_or_go_on(args, task, origin, folder)
        print_score(folder, task, rows)


if __name__ == "__main__":
    try:
        main()
    except filelock.Timeout as error:
        sys.exit(f"error: another process holds {error.lock_file}; wait for it or stop it")
    except (UserError, ImportError, OSError, torch.OutOfMemoryError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:  # nothing to save yet
        sys.exit(130)

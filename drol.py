"""DROL, Dynamic Routing for Offline RL (arXiv 2604.22229), in one file; fql.py is its baseline, likewise.

    $ python drol.py --env-id humanoidmaze-medium --k 16

A one-step actor f(s, z) turns a state s and a latent z into an action. For each state, K latents become K
candidate actions, the dataset action is routed to the nearest one, and only that winner is cloned and guided
by the critic. Routing is redone at every update, so a candidate that comes nearer takes over: the support of
the data is kept, and no candidate is tied to one target for good. Acting takes one latent and one pass.

One update, from a batch (s, a, r, m, s') of the dataset, m = 0 where s' must not be bootstrapped from:

  1. latents     z uniform in the ball of radius sqrt(A) in R^A, A action dimensions       sample_latents
  2. critic      a' = clip(f(s', z')), one latent; y = r + discount * m * agg_i Qbar_i(s', a')
                 L_critic = mean_{i, batch} (Q_i(s, a) - y)^2; agg: mean or min (q_agg)       critic_loss
  3. candidates  a_k = clip(f(s, z_k)), k = 1..K                                        sample_candidates
  4. routing     k* = argmin_k |a_k - a|^2, the first of equals                                     route
  5. actor       L_actor = bc_coef * mean_{batch, A} (a_k* - a)^2                              actor_loss
                 - mean_batch(q) / max(mean_batch |q|, 1e-6), the divisor held constant,
                 q = min_i Q_i(s, a_k*), the critics held constant
  6. step        one Adam step on L_critic + L_actor, both at the same parameters;                 update
                 Qbar <- Qbar + tau * (Q - Qbar), Q from before that step

No gradient reaches a loser and argmin has none, so candidates need no graph, and only the winner's latent is
run again with one: the gradient of differentiating all K, at a fraction of the work.
"""

import copy
import csv
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing.resource_tracker
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections import namedtuple
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import filelock
import gymnasium
import numpy as np
import ogbench
import torch
import tyro
from ogbench.relabel_utils import relabel_dataset
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# ------------------------------------------------------------------------------------------------ settings

@dataclass
class Args:
    env_id: str  # OGBench family (cube-double) or name (cube-double-play-singletask-task2-v0), or D4RL task
    task: int | None = None  # task of OGBench's family, 1 to 5; unset: its default task
    seed: int = 0  # seed of initialisation, batches, noise and evaluation
    k: int = 16  # candidates a state; 16 is the paper's DROL(16). Tune bc_coef first, then k
    bc_coef: float | None = None  # weight of cloning against the Q term; unset: the family's published value
    discount: float | None = None  # discount factor; unset: the family's published value
    q_agg: Literal["mean", "min"] | None = None  # joins the target critics; unset: the published way
    actor_q_agg: Literal["mean", "min"] = "min"  # joins the critics in the actor loss
    normalize_q: bool = True  # divide the Q term by the batch mean of |q|: bc_coef is free of Q's scale
    steps: int | None = None  # gradient steps; unset: 1M, D4RL 500,000; a finished run given more goes on
    batch_size: int = 256  # transitions an update
    lr: float = 3e-4  # Adam's learning rate
    tau: float = 0.005  # the target critic's update rate
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # hidden widths of every network
    eval_interval: int = 100_000  # updates between evaluations, which change no weight; the end is one too
    eval_episodes: int = 50  # episodes an evaluation
    eval_envs: int = 10  # environments, a process each, that share the episodes; part of their seeds
    log_interval: int = 5_000  # updates between rows of train.csv
    checkpoint_interval: int = 10_000  # updates between checkpoints; Ctrl-C and SIGTERM save one as well
    snapshot_interval: int = 0  # updates between checkpoints that are kept, for figures; 0: none
    data_dir: Path | None = None  # datasets; a missing one is downloaded; unset: ogbench's or d4rl's folder
    run_dir: Path = Path("runs")  # folder of the runs
    device: str = "auto"  # auto (the GPU if it works), cpu, cuda or cuda:N
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on the CPU from 20,000 steps on
    overwrite: bool = False  # delete what the run's folder holds and start anew
    track: bool = False  # log to Weights & Biases as well (pip install wandb)


# Published settings, a row a family: dataset, discount, q_agg, bc_coef.
PRESETS = {
    "antmaze-large": ("navigate", 0.995, "min", 0.03), "antmaze-giant": ("navigate", 0.995, "min", 0.03),
    "humanoidmaze-medium": ("navigate", 0.995, "mean", 0.3),
    "humanoidmaze-large": ("navigate", 0.995, "mean", 0.3),
    "antsoccer-arena": ("navigate", 0.995, "mean", 0.1), "scene": ("play", 0.99, "mean", 3.0),
    "cube-single": ("play", 0.99, "mean", 10.0), "cube-double": ("play", 0.99, "mean", 3.0),
    "puzzle-3x3": ("play", 0.99, "mean", 0.3), "puzzle-4x4": ("play", 0.99, "mean", 10.0),
    "pointmaze": ("navigate", 0.995, "mean", 0.3),  # ours, for all of pointmaze
}
# D4RL, discount 0.99, q_agg mean in antmaze and min in Adroit: bc_coef.
D4RL_PRESETS = {
    "antmaze-umaze-v2": 0.3, "antmaze-medium-play-v2": 0.1, "antmaze-large-play-v2": 0.1,
    "antmaze-umaze-diverse-v2": 0.1, "antmaze-medium-diverse-v2": 0.1, "antmaze-large-diverse-v2": 0.1,
    "pen-human-v1": 1.0, "pen-cloned-v1": 1.0, "pen-expert-v1": 1.0,
    "door-human-v1": 10.0, "door-cloned-v1": 10.0, "door-expert-v1": 10.0,
    "hammer-human-v1": 3.0, "hammer-cloned-v1": 3.0, "hammer-expert-v1": 3.0,
    "relocate-human-v1": 10.0, "relocate-cloned-v1": 10.0, "relocate-expert-v1": 10.0,
}
SIGNALS, PRESET_FLAGS = (signal.SIGINT, signal.SIGTERM), ("discount", "q_agg", "bc_coef")
ALGORITHM, RUN_NAME = "drol", "drol-k{k}-{hash}"
RANGES = {"lr": (0, 1), "tau": (0, 1), "discount": (0, 1), "seed": (0, 1e9), "task": (1, 5),
          "snapshot_interval": (0, 1e9), "bc_coef": (0, 1e9)}  # of the others: 1 to 1e9
NOT_HASHED = {"env_id", "task", "seed", "steps", "log_interval", "checkpoint_interval", "snapshot_interval",
              "data_dir", "run_dir", "device", "compile", "overwrite", "track"}  # change rounding at most
Env = namedtuple("Env", "name dataset task preset steps data_dir metric evaluations note")
OGBENCH = (1_000_000, ogbench.utils.DEFAULT_DATASET_DIR, "success rate in %", 3,
           "task {} of 5; a published score is the mean over all 5 tasks of a family")
D4RL = (500_000, os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets"), "normalised return x 100", 1,
        "one task; a published average is over all 6 tasks of antmaze or all 12 of Adroit")


class UserError(ValueError):
    """A mistake that the user can mend; the message says how, and the command line prints only that."""


def find_env(env_id, task=None):
    """The Env that an id and a task name. Raises UserError where there is none."""
    if env_id in D4RL_PRESETS and task is None:
        return Env(env_id, env_id, None, env_id, *D4RL)
    pattern = r"(.*?)(?:-(navigate|stitch|explore|play|noisy))?(?:-singletask(?:-task([1-5]))?-v0)?"
    family, kind, named_task = re.fullmatch(pattern, env_id, re.S).groups()
    if task and (env_id in D4RL_PRESETS or task != int(named_task or task)):
        raise UserError(f"--task {task} contradicts --env-id {env_id}; leave one of them out")
    known = re.findall("^(?!visual|humanoidmaze-t)(.*)-singletask-v0$", "\n".join(gymnasium.registry), re.M)
    if family not in known or kind and (kind in ("play", "noisy")) == bool(re.search("maze|soccer", family)):
        near = ", ".join(difflib.get_close_matches(env_id, [*known, *D4RL_PRESETS], n=3, cutoff=0))
        raise UserError(f"--env-id {env_id}: unknown environment; the nearest known ones are {near}")
    preset = family if family in PRESETS else [x for x in PRESETS if family.startswith(x.split("-")[0])][-1]
    name = f"{family}-{kind or PRESETS[preset][0]}"
    task = int(named_task or task or make_env(f"{name}-singletask-v0").unwrapped._reward_task_id)
    return Env(f"{name}-singletask-task{task}-v0", f"{name}-v0", task, preset, *OGBENCH)


def resolve(args):
    """Checks args and fills in the preset. Returns a new Args, its Env, and where each setting came from."""
    for flag, value in vars(args).items():
        low, high = RANGES.get(flag, (1, 1e9))
        if type(value) in (int, float, tuple) and not all(low <= x <= high for x in np.atleast_1d(value)):
            raise UserError(f"--{flag.replace('_', '-')} {value}: give {low} to {high:g}")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise UserError("--track needs wandb, which is not installed: pip install wandb")
    env = find_env(args.env_id, args.task)
    given = {field.name for field in fields(Args) if getattr(args, field.name) != field.default}
    origin = {flag: "command line" if flag in given else "default" for flag in vars(args)}
    args = replace(args, task=env.task, steps=args.steps or env.steps, run_dir=args.run_dir.expanduser(),
                   data_dir=Path(args.data_dir or env.data_dir).expanduser())
    d4rl_row = ("", 0.99, "mean" if "antmaze" in env.name else "min", D4RL_PRESETS.get(env.preset))
    kind, *preset = PRESETS.get(env.preset, d4rl_row)
    published = env.dataset in (env.preset, f"{env.preset}-{kind}-v0")
    for flag, value in zip(PRESET_FLAGS, preset, strict=True):
        if getattr(args, flag) is None:
            setattr(args, flag, value)
            origin[flag] = f"{'published for' if published else 'not published; as for'} {env.preset}"
    return args, env, origin


# ---------------------------------------------------------------------------------------------------- data

class Episode(gymnasium.Wrapper):
    """Makes an episode a function of its seed alone, sums it up in its last info, and then stands still."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # OGBench's mazes draw from NumPy's global generator and from the action space
        self.env.unwrapped.action_space.seed(seed)
        self.last, self.rewards = None, []
        return self.env.reset(seed=seed)[0], {}

    def step(self, action):
        if not self.last:
            *result, info = self.env.step(action)  # observation, reward, terminated, truncated
            self.rewards.append(result[1])
            if not (result[2] or result[3]):
                return *result, {}
            total = sum(self.rewards)
            score = info["success"] if "success" in info else self.env.unwrapped.get_normalized_score(total)
            self.last = *result, {"score": 100.0 * score, "return": total, "length": len(self.rewards)}
        return self.last


def make_env(name):
    """The environment of a full name. OGBench 1.2 takes reward and success from s, not s'."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # else it warns of Box's precision
    warnings.filterwarnings("ignore", module="glfw")  # and glfw of a missing display
    if "-singletask" in name:
        return Episode(ogbench.make_env_and_datasets(name, env_only=True, disable_env_checker=True))
    from tools.d4rl_compat import D4RLEnv  # an ImportError says what to install
    return Episode(D4RLEnv(name))


def read_split(path, env, sample_env):
    """A file of a dataset as a dict of float32 arrays, with rewards and masks of env's task."""
    try:
        if env.task is None:  # the steps of d4rl.qlearning_dataset
            data = sample_env.unwrapped.load_dataset(path)
            data["rewards"] -= env.name.startswith("antmaze")  # -1 a step until the goal
        else:
            data = ogbench.load_dataset(path, add_info=True)
            relabel_dataset(env.name, sample_env, data)
        data = {key: value for key, value in data.items() if key not in ("qpos", "qvel", "button_states")}
        dims = {"observations": sample_env.observation_space.shape, "actions": sample_env.action_space.shape}
        for key, value in data.items():
            if not np.isfinite(value).all():
                raise ValueError(f"'{key}' holds NaN or infinity")
            if not len(value) or value.shape[1:] != dims.get(key.removeprefix("next_"), ()):
                raise ValueError(f"the shape {value.shape} of '{key}' does not fit {env.name}")
    except Exception as error:  # whatever a broken file makes its readers raise
        raise UserError(f"dataset {path} is not usable: {error}; delete it if it is damaged") from error
    np.clip(data["actions"], -1 + 1e-5, 1 - 1e-5, out=data["actions"])
    return data


def load_data(env, data_dir, device):
    """The training and, of OGBench, the validation split as dicts of tensors on the device, and a report.
    observations, next_observations (N, O); actions (N, A); rewards, masks (N,). Downloads what is missing."""
    sample_env = make_env(env.name)
    hub = sample_env.unwrapped if env.task is None else ogbench
    names = [hub.dataset_file] if env.task is None else [f"{env.dataset}.npz", f"{env.dataset}-val.npz"]
    path, files = data_dir / names[0], " and ".join(names)
    try:
        if not all((data_dir / name).exists() for name in names):
            data_dir.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(data_dir / f"{env.dataset}.lock"):  # of several runs the first downloads
                hub.download_datasets([env.dataset], data_dir)
    except OSError as error:
        found = re.match(r"(cube.*|scene|puzzle.*|pointmaze.*)-(play|navigate)-v0", env.dataset)
        hint = f", or python tools/collect.py --env-id {found[1]}, then add --data-dir data" if found else ""
        raise UserError(f"dataset {path} cannot be downloaded ({error}): put {files} there{hint}") from error
    train, *_ = splits = [read_split(data_dir / name, env, sample_env) for name in names]
    digest = hashlib.sha256()
    for key in ("observations", "actions", "rewards", "masks"):
        digest.update(np.ascontiguousarray(train[key]))
    marked = np.load(path) if hub is ogbench else {}  # by tools/collect.py
    report = {"path": str(path), "source": str(marked.get("source", "not marked as collected")),
              "fingerprint": digest.hexdigest()[:16], "episodes": int(train["terminals"].sum()),
              "transitions": len(train["rewards"]), "validation": sum(len(x["rewards"]) for x in splits[1:]),
              "reward_min": float(train["rewards"].min()), "reward_max": float(train["rewards"].max()),
              "terminal_share": round(float(np.mean(train["masks"] == 0)), 6),
              "simulator": getattr(hub, "SIMULATOR", f"mujoco {importlib.metadata.version('mujoco')}")}
    return [{key: torch.from_numpy(value).to(device) for key, value in split.items() if key != "terminals"}
            for split in splits], report


def sample_batch(data, batch_size, generator):
    """A batch drawn uniformly: a dict like data, with B rows."""
    index = torch.randint(len(data["rewards"]), (batch_size,), generator=generator, device=generator.device)
    return {key: tensor[index] for key, tensor in data.items()}


# ------------------------------------------------------------------------------------------------ networks

class MLP(nn.Module):
    """Joins its inputs (..., D_i). A hidden width: Linear, GELU in its tanh form and, if asked, LayerNorm."""

    def __init__(self, in_dim, hidden_dims, out_dim, norm, generator):
        super().__init__()
        self.linears = nn.ModuleList(map(nn.Linear, (in_dim, *hidden_dims), (*hidden_dims, out_dim)))
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=1e-6) if norm else nn.Identity() for d in hidden_dims)
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, *inputs):
        x = torch.cat(inputs, -1)
        for linear, norm in zip(self.linears, self.norms):
            x = linear(x)
            x = norm(x * torch.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))  # a GELU that fuses
                     if torch.compiler.is_compiling() else nn.functional.gelu(x, approximate="tanh"))
        return self.linears[-1](x)


class Critic(nn.ModuleList):
    """Q_1 and Q_2: observations (B, O) and actions (B, A) to values (2, B)."""

    def __init__(self, in_dim, hidden_dims, generator):
        super().__init__(MLP(in_dim, hidden_dims, 1, True, generator) for _ in range(2))

    def forward(self, s, a):
        return torch.stack([q(s, a).squeeze(-1) for q in self])  # (2, B)


def make_networks(observation_dim, action_dim, hidden_dims, generator):
    """Fresh networks by name. generator: on the CPU, so that a seed starts alike on every device."""
    in_dim = observation_dim + action_dim
    networks = nn.ModuleDict({"actor": MLP(in_dim, hidden_dims, action_dim, False, generator)})  # f(s, z)
    networks["critic"] = Critic(in_dim, hidden_dims, generator)
    networks["target_critic"] = copy.deepcopy(networks["critic"]).requires_grad_(False)
    return networks


# ----------------------------------------------------------------------------------------------- algorithm
# B batch, K candidates, O observation and A action dimensions.

def sample_latents(*shape, generator):
    """Latents of a shape (..., A), uniform in the ball of radius sqrt(A) in R^A."""
    direction = torch.randn(shape, generator=generator, device=generator.device)
    u = torch.rand(*shape[:-1], 1, generator=generator, device=generator.device)
    # z = sqrt(A) * u^(1/A) * g / |g|
    return shape[-1] ** 0.5 * u ** (1 / shape[-1]) * direction / direction.norm(dim=-1, keepdim=True)


def sample_noise(batch_size, action_dim, args, generator):
    """All that is random in one update."""
    return {"next_latents": sample_latents(batch_size, action_dim, generator=generator),  # (B, A)
            "latents": sample_latents(batch_size, args.k, action_dim, generator=generator)}  # (B, K, A)


@torch.no_grad()
def sample_candidates(actor, s, latents):
    """Candidate actions (B, K, A) of states (B, O) for latents (B, K, A), without a graph."""
    # a_k = clip(f(s, z_k)), 16 at a time, to stay in the CPU's cache
    a = [actor(s[:, None].expand(-1, z.shape[1], -1), z).clamp(-1, 1) for z in latents.split(16, 1)]
    return torch.cat(a, 1)


def route(candidates, a):
    """Index (B,) of the candidate (B, K, A) that is nearest to the dataset action (B, A)."""
    # k* = argmin_k |a_k - a|^2
    return (candidates - a[:, None]).square().sum(-1).argmin(1)


def critic_loss(actor, critic, target_critic, batch, next_z, discount, q_agg):
    """TD loss of both critics, and its metrics. batch: see sample_batch; next_z: (B, A)."""
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


def actor_loss(actor, critic, batch, latents, bc_coef, actor_q_agg, normalize_q):
    """Routed cloning plus the Q term, on the winner alone, and its metrics. latents: (B, K, A)."""
    s, a = batch["observations"], batch["actions"]
    winner = route(sample_candidates(actor, s, latents), a) if latents.shape[1] > 1 else 0
    z = latents[torch.arange(len(a), device=a.device), winner]  # (B, A)
    pi = actor(s, z).clamp(-1, 1)  # a_k*, now with a graph
    # L_BC = mean_{batch, A} (a_k* - a)^2
    bc_loss = (pi - a).square().mean()
    # Q guides the actor and is not trained by it: its parameters enter as constants.
    constants = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    q = torch.func.functional_call(critic, constants, (s, pi))  # (2, B)
    q = q.amin(0) if actor_q_agg == "min" else q.mean(0)
    # L_Q = -mean(q) / max(mean |q|, 1e-6), the divisor held constant
    q_loss = -q.mean()
    if normalize_q:
        q_loss = q_loss / q.detach().abs().mean().clamp(min=1e-6)
    # L_actor = bc_coef * L_BC + L_Q
    loss = bc_coef * bc_loss + q_loss
    return loss, {"actor_loss": loss, "bc_loss": bc_loss, "q_loss": q_loss, "q": q.mean()}


def losses(networks, batch, noise, args):
    """L_critic + L_actor, both at the same parameters, and the metrics of both."""
    actor, critic, target_critic = networks["actor"], networks["critic"], networks["target_critic"]
    loss_c, metrics_c = critic_loss(actor, critic, target_critic, batch, noise["next_latents"],
                                    args.discount, args.q_agg)
    loss_a, metrics_a = actor_loss(actor, critic, batch, noise["latents"],
                                   args.bc_coef, args.actor_q_agg, args.normalize_q)
    return loss_c + loss_a, metrics_c | metrics_a


def update(networks, optimizer, batch, noise, args, losses=losses):
    """One gradient step of every network, in place. Returns the metrics, as tensors."""
    loss, metrics = losses(networks, batch, noise, args)
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():  # the target follows the critic from before the step
        for target, source in zip(networks["target_critic"].parameters(), networks["critic"].parameters()):
            target.lerp_(source, args.tau)
    optimizer.step()
    return {key: value.detach() for key, value in metrics.items()}


@torch.no_grad()
def diagnostics(actor, batch, noise):
    """How the candidates lie, per action dimension; computed only when logged. Distances are 0 at K = 1."""
    s, a, (B, K, A) = batch["observations"], batch["actions"], noise["latents"].shape
    candidates = sample_candidates(actor, s, noise["latents"])  # (B, K, A)
    # spread = mean_k |a_k - mean_j a_j|^2 / A; over the ordered pairs the mean is 2K / (K - 1) times that
    spread = candidates.var(1, correction=0).mean()
    winner_share = torch.bincount(route(candidates, a), minlength=K) / B
    fresh = actor(s, noise["next_latents"]).clamp(-1, 1)
    return {"candidate_spread": spread, "pairwise_distance": (spread * 2 * K / max(K - 1, 1)).sqrt(),
            "winner_entropy": torch.special.entr(winner_share).sum(), "mse": (fresh - a).square().mean()}


@torch.no_grad()
def act(actor, observation, action_dim, generator):
    """Actions (..., A) in [-1, 1] for observations (..., O), NumPy on both sides: one latent, one pass."""
    s = torch.as_tensor(observation, dtype=torch.float32, device=generator.device)
    return actor(s, sample_latents(*s.shape[:-1], action_dim, generator=generator)).clamp(-1, 1).cpu().numpy()


# ---------------------------------------------------------------------------------- evaluation and records

def make_generator(device, *key):
    """A random generator from a tuple of integers: each purpose has its own, and none disturbs another."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def load_policy(path, device="cpu", seed=0):
    """A checkpoint's policy: a function from observations to actions (see act). Raises UserError."""
    saved = load_checkpoint(path, device)
    networks = make_networks(*saved["dims"], torch.Generator()).to(device)
    networks.load_state_dict(saved["networks"])
    generator = make_generator(device, seed)
    return lambda observation: act(networks["actor"], observation, saved["dims"][1], generator)


def make_eval_envs(name, count):
    """count environments of one name, a process each, stepped together."""
    multiprocessing.set_forkserver_preload([Path(__file__).stem])  # imports once what the processes need
    multiprocessing.resource_tracker.ensure_running()  # before the signals are blocked, which it would undo
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited: the main process handles them
    try:
        return gymnasium.vector.AsyncVectorEnv([lambda: make_env(name)] * count, context="forkserver",
                                               autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def evaluate(policy, envs, episodes, key, stop=()):
    """Plays episodes, each environment a fixed share, each episode seeded by (*key, environment, episode).
    Returns the episodes' means, or None as soon as stop holds something. The score is the benchmark's."""
    count = envs.num_envs
    share = episodes // count + (np.arange(count) < episodes % count)
    played, fresh, finished = np.zeros(count, int), np.ones(count, bool), []
    while (played < share).any():
        if stop:
            return None
        if fresh.any():  # the others play on, or stand still once they have played their share
            seeds = [make_generator("cpu", *key, i, n).initial_seed() for i, n in enumerate(played.tolist())]
            observations, _ = envs.reset(seed=seeds, options={"reset_mask": fresh})
        observations, _, terminated, truncated, info = envs.step(policy(observations))
        ended = (terminated | truncated) & (played < share)
        finished += [(info["score"][i], info["return"][i], info["length"][i]) for i in np.flatnonzero(ended)]
        played += ended
        fresh = ended & (played < share)
    (score, total, length), std = np.mean(finished, 0).tolist(), np.std(finished, 0).tolist()[1]
    return {"score": score, "return": total, "return_std": std, "length": length}


def load_checkpoint(path, device, identity=None):
    """A checkpoint of this algorithm's, and of one identity if that is given. Raises UserError."""
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["algorithm"] != ALGORITHM or identity not in (None, saved["identity"]):
            raise ValueError(f"it is {saved['algorithm']}.py's, {saved['identity']}")
        return saved
    except Exception as error:  # whatever a broken file makes torch raise
        raise UserError(f"checkpoint {path} is missing, damaged or of another run ({error!r:.99}): restore "
                        f"it or train anew with --overwrite") from error


def lock_run(run, overwrite):
    """Makes the run's folder, afresh if told to, and keeps other processes out while the result is held."""
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{run}.lock").acquire(timeout=0)
        if overwrite and run.exists():
            shutil.rmtree(run)
        run.mkdir(exist_ok=True)
        return lock
    except filelock.Timeout as error:
        raise UserError(f"run folder {run} is in use by another process; wait for it or stop it") from error
    except OSError as error:
        raise UserError(f"run folder {run} cannot be written ({error}); give another --run-dir") from error


# ---------------------------------------------------------------------------------------------------- main

def pick_device(wanted):
    """The torch device that --device means. Raises UserError where it does not work."""
    try:
        return torch.zeros(1, device="cuda" if wanted == "auto" else wanted).device
    except (RuntimeError, AssertionError) as error:
        if wanted != "auto" or isinstance(error, torch.OutOfMemoryError):
            raise UserError(f"--device {wanted} does not work ({error}); give auto, cpu or cuda") from error
    if shutil.which("nvidia-smi"):
        print("WARNING: torch cannot use this machine's NVIDIA card (README, Install); the CPU will be slow.")
    return torch.device("cpu")


def compile_losses(device):
    """losses through torch.compile, or as they are where no compiler works."""
    try:
        torch.compile(torch.sin)(torch.ones(1, device=device))
        return torch.compile(losses)
    except Exception as error:
        print(f"torch.compile is left out: no working compiler ({type(error).__name__})")
        return losses


def train(args, env, run, splits, device):
    """Trains, evaluates and records a run, from its checkpoint if there is one. Returns the exit code."""
    data, *validation = splits
    dims = (data["observations"].shape[1], data["actions"].shape[1], args.hidden_dims)
    networks = make_networks(*dims, make_generator("cpu", args.seed, 0)).to(device)
    optimizer = torch.optim.Adam(networks.parameters(), lr=args.lr, fused=True)  # the target has no gradient
    generators = {name: make_generator(device, args.seed, i) for i, name in enumerate(("batch", "noise"), 1)}
    step, seconds, rows = 0, 0.0, {"train": [], "eval": []}
    compiled = args.compile == "on" or (args.compile, device.type) == ("auto", "cpu") and args.steps >= 20_000
    checkpoint, identity = run / "checkpoint.pt", f"{'/'.join(run.parts[-3:])} on {device.type}"
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint, device, identity)
        networks.load_state_dict(saved["networks"])
        optimizer.load_state_dict(saved["optimizer"])
        for name, generator in generators.items():
            generator.set_state(saved["generators"][name].cpu())
        step, seconds, rows, compiled = (saved[key] for key in ("step", "seconds", "rows", "compiled"))
        print(f"resumed at update {step:,}")
    losses_used = compile_losses(device) if compiled else losses
    envs, stop, threads, start = None, [], torch.get_num_threads(), time.perf_counter() - seconds
    handlers = {n: signal.signal(n, lambda n, _: stop.append(n)) for n in SIGNALS}
    board = SummaryWriter(run, purge_step=step + 1)
    bar = tqdm(total=args.steps, initial=step, unit=" updates", dynamic_ncols=True, disable=None)

    def record(name, row):
        rows[name].append({"step": step, **row})
        with open(run / f"{name}.csv", "w", newline="") as file:  # whole: a resumed run takes rows back
            csv.writer(file, lineterminator="\n").writerows([rows[name][0], *map(dict.values, rows[name])])
        for key, value in row.items():
            board.add_scalar(f"{name}/{key}", value, step)

    def save(*snapshot):
        content = {"algorithm": ALGORITHM, "env": env.name, "identity": identity, "dims": dims, "step": step,
                   "seconds": time.perf_counter() - start, "rows": rows, "networks": networks.state_dict(),
                   "optimizer": optimizer.state_dict(), "compiled": losses_used is not losses,
                   "generators": {name: generator.get_state() for name, generator in generators.items()}}
        for path in (*snapshot, checkpoint):
            with open(run / "checkpoint.partial", "wb") as file:
                torch.save(content, file)
            os.replace(run / "checkpoint.partial", path)  # so that a file of this name is always whole

    try:
        while not stop:
            due = step and (step % args.eval_interval == 0 or step >= args.steps)
            if due and step not in [row["step"] for row in rows["eval"]]:
                envs = envs or make_eval_envs(env.name, min(args.eval_envs, args.eval_episodes))
                generator = make_generator(device, args.seed, 3, step)
                policy = lambda observation: act(networks["actor"], observation, dims[1], generator)
                torch.set_num_threads(1 if envs.num_envs > 1 else threads)  # the cores are the envs'
                result = evaluate(policy, envs, args.eval_episodes, (args.seed, step), stop)
                torch.set_num_threads(threads)
                if result is None:
                    break
                record("eval", result)
                save()
                tqdm.write(f"update {step:>9,}  " + "  ".join(f"{key} {x:7.1f}" for key, x in result.items()))
            if step >= args.steps:
                break
            batch = sample_batch(data, args.batch_size, generators["batch"])
            noise = sample_noise(args.batch_size, dims[1], args, generators["noise"])
            logged = {}
            if (step + 1) % args.log_interval == 0:  # at the parameters that the update starts from
                for split in validation:
                    split = sample_batch(split, args.batch_size, make_generator(device, args.seed, 4, step))
                    with torch.no_grad():
                        logged |= {f"val_{n}": x for n, x in losses(networks, split, noise, args)[1].items()}
                logged |= diagnostics(networks["actor"], batch, noise)
            metrics = update(networks, optimizer, batch, noise, args, losses_used)
            step += 1
            bar.update()
            if logged:
                logged |= metrics
                values = torch.stack(list(logged.values())).tolist()  # the one transfer from the device
                record("train", {"seconds": time.perf_counter() - start, **dict(zip(logged, values))})
            if args.snapshot_interval and step % args.snapshot_interval == 0:
                save(run / f"snapshot{step}.pt")
            elif step % args.checkpoint_interval == 0:
                save()
        if stop:
            save()
    finally:
        bar.close()
        board.close()
        if envs:
            envs.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop:
        print(f"stopped at update {step:,} and saved; the same command goes on from there")
        return 128 + stop[0]
    scores = [row["score"] for row in rows["eval"]][-env.evaluations:]
    print(f"finished at update {step:,}: score {np.mean(scores):.1f}, {env.metric}, the mean of "
          f"{len(scores)} evaluation(s)\n{env.note.format(env.task)}\n{run}")
    return 0


def main(argv=None):
    """The command line. Returns 0, or 128 + n after signal n; exits with 1 on a mistake of the user's."""
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    try:
        args, env, origin = resolve(args)
        device = pick_device(args.device)
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # concerns the GPU alone
        print(f"{ALGORITHM.upper()} on {env.name}\n{env.note.format(env.task)}\n"
              f"{device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
        splits, report = load_data(env, args.data_dir, device)
        if re.match(r"ant.* mujoco (3\.([5-9]|\d\d)|[4-9]|\d\d)", f"{env.name} {report['simulator']}"):
            print("WARNING: MuJoCo 3.5 changed the ant's contacts: not the published environment (README)")
        for key, value in (report | vars(args)).items():
            print(f"  {key:<20}{value!s:<23} {origin.get(key, '')}".rstrip())
        hashed = {key: value for key, value in vars(args).items() if key not in NOT_HASHED}
        content = json.dumps([env.name, report["fingerprint"], report["simulator"], hashed]).encode()
        name = RUN_NAME.format(**hashed, hash=hashlib.sha256(content).hexdigest()[:8]) + f"/seed{args.seed}"
        run = args.run_dir / env.name.replace("-singletask", "").removesuffix("-v0") / name
        versions = {name: importlib.metadata.version(name) for name in ("torch", "mujoco", "ogbench")}
        config = {"algorithm": ALGORITHM, "env": dict(zip(env._fields[:4], env)), "settings": asdict(args),
                  "origin": origin, "data": report, "device": str(device), "versions": versions}
        with lock_run(run, args.overwrite):
            (run / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
            print(run)
            if args.track:
                import wandb
                wandb.init(project="drol", id="-".join(run.parts[-2:]), name=str(run), config=config, dir=run,
                           resume="allow", sync_tensorboard=True)
            return train(args, env, run, splits, device)
    except (UserError, OSError, ImportError, torch.OutOfMemoryError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:  # before there was anything to save
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

"""FQL, flow Q-learning (arXiv 2502.02538), in one file. It is the baseline of drol.py.

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
  guidance   (8)  L_q = -mean(q), q = mean_i Q_i(s, clip(f(s, z)))
  step       (9)  Qbar <- Qbar + tau * (Q - Qbar)
            (10)  one Adam step on L_critic + L_flow + alpha * L_distill + L_q

A is the action dimension, clip is to [-1, 1]. For the actor, e and Q's parameters are fixed.
"""

import copy
import io
import json
import os
import shutil
import signal
import sys
import time
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

# -------------------- settings
ALGORITHM = "fql"
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass
class Args:
    env_id: str  # such as cube-double or pen-human-v1: see PUBLISHED
    task: Literal[1, 2, 3, 4, 5] | None = None  # OGBench's task; unset: the default one
    seed: NonNegativeInt = 0
    steps: PositiveInt | None = None  # updates; unset: 1,000,000, D4RL 500,000
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    compile: bool = False  # slow to start, then faster
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # high: TF32 on a GPU

    # algorithm; unset: as published
    alpha: NonNegativeFloat | None = None  # higher: closer to the data
    flow_steps: PositiveInt = 10  # N in (6)
    normalize_q: bool = False  # divide L_q by mean |q|; advised for new tasks
    discount: Share | None = None
    q_agg: Literal["mean", "min"] | None = None  # how target critics are combined
    batch_size: PositiveInt = 256
    lr: PositiveFloat = 3e-4
    tau: Share = 0.005  # target update rate
    hidden_dims: tuple[PositiveInt, ...] = (512, 512, 512, 512)  # of every network

    # evaluation and records
    eval_interval: PositiveInt = 100_000  # updates between evaluations
    eval_episodes: PositiveInt = 50  # a multiple of eval_envs
    eval_envs: PositiveInt = 10  # processes that play at once
    log_interval: PositiveInt = 5_000  # updates between rows of train.csv
    checkpoint_interval: PositiveInt = 5_000  # updates between checkpoints
    snapshot_interval: NonNegativeInt = 0  # between checkpoints to keep; 0: keep none
    data_dir: str | None = None  # dataset folder; unset: the benchmark's
    run_dir: str = "runs"  # folder of all runs
    exp_name: str = ALGORITHM  # prefix of the run folder's name
    overwrite: bool = False  # delete the run's folder first
    track: bool = False  # log to Weights & Biases too


# -------------------- networks
class MLP(nn.Module):
    """Maps the concatenation of its inputs (..., D_i) to (..., out_dim)."""

    def __init__(self, in_dim, hidden_dims, out_dim, layer_norm=False):
        super().__init__()
        layers = []
        for width in hidden_dims:
            layers += [nn.Linear(in_dim, width), nn.GELU(approximate="tanh")]  # Flax's GELU
            if layer_norm:
                layers.append(nn.LayerNorm(width, eps=1e-6))  # after GELU; Flax's eps
            in_dim = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_dim, out_dim))

    def forward(self, *inputs):
        return self.layers(torch.cat(inputs, -1))


class Critic(nn.Module):
    """Q_1 and Q_2: states (B, O) and actions (B, A) to values (2, B)."""

    def __init__(self, in_dim, hidden_dims):
        super().__init__()
        self.q1 = MLP(in_dim, hidden_dims, 1, layer_norm=True)
        self.q2 = MLP(in_dim, hidden_dims, 1, layer_norm=True)

    def forward(self, s, a):
        return torch.stack([self.q1(s, a), self.q2(s, a)]).squeeze(-1)


def make_networks(observation_dim, action_dim, hidden_dims, generator):
    """Fresh networks by name, made on the CPU so that a seed starts alike on every device."""
    in_dim = observation_dim + action_dim
    networks = nn.ModuleDict()
    networks["actor"] = MLP(in_dim, hidden_dims, action_dim)  # f(s, z)
    networks["critic"] = Critic(in_dim, hidden_dims)
    networks["flow"] = MLP(in_dim + 1, hidden_dims, action_dim)  # v(s, x, t)
    for layer in networks.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)  # Flax's fan_avg uniform
            nn.init.zeros_(layer.bias)
    networks["target_critic"] = copy.deepcopy(networks["critic"]).requires_grad_(False)
    return networks


# -------------------- algorithm
# B batch, O observation and A action dimensions; (1) to (10) as at the top.
def sample_latents(*shape, generator):
    """(1) Latents (..., A), standard normal."""
    return torch.randn(shape, generator=generator, device=generator.device)


def sample_noise(args, action_dim, generator):
    """The random numbers of one update: next_z, x_0 and z (B, A), and t (B, 1)."""
    next_z = sample_latents(args.batch_size, action_dim, generator=generator)
    x_0 = sample_latents(args.batch_size, action_dim, generator=generator)
    t = torch.rand(args.batch_size, 1, generator=generator, device=generator.device)
    z = sample_latents(args.batch_size, action_dim, generator=generator)
    return {"next_z": next_z, "x_0": x_0, "t": t, "z": z}


@torch.no_grad()
def flow_action(flow, s, z, flow_steps):
    """(6) The flow's end (B, A) from latents (B, A) at states (B, O), by Euler's method."""
    x = z
    for i in range(flow_steps):
        t = torch.full_like(x[:, :1], i / flow_steps)
        x = x + flow(s, x, t) / flow_steps
    return x.clamp(-1, 1)


def critic_loss(actor, critic, target_critic, batch, next_z, discount, q_agg):
    """L_critic, which trains the critic alone, and its metrics. next_z: (B, A)."""
    s, a, next_s = batch["observations"], batch["actions"], batch["next_observations"]
    with torch.no_grad():  # (2)
        next_a = actor(next_s, next_z).clamp(-1, 1)
        next_q = target_critic(next_s, next_a)  # (2, B)
        next_q = next_q.amin(0) if q_agg == "min" else next_q.mean(0)
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
    constants = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    clipped = action.clamp(-1, 1)
    q = torch.func.functional_call(critic, constants, (s, clipped)).mean(0)  # (B,)
    q_loss = -q.mean()  # (8)
    if normalize_q:
        q_loss = q_loss / q.detach().abs().mean()

    loss = alpha * distill_loss + q_loss
    return loss, {
        "actor_loss": loss,
        "distill_loss": distill_loss,
        "q_loss": q_loss,
        "q": q.mean(),
        "mse": (clipped - a).square().mean(),
    }


def losses(networks, batch, noise, args):
    """The sum of all losses, at the current parameters, and the metrics of all."""
    actor, critic, flow, target_critic = networks.values()
    loss_c, metrics_c = critic_loss(
        actor, critic, target_critic, batch, noise["next_z"], args.discount, args.q_agg
    )
    loss_f, metrics_f = flow_loss(flow, batch, noise["x_0"], noise["t"])
    loss_a, metrics_a = actor_loss(
        actor, flow, critic, batch, noise["z"], args.flow_steps, args.alpha, args.normalize_q
    )
    metrics = metrics_c | metrics_f | metrics_a
    return loss_c + loss_f + loss_a, {name: value.detach() for name, value in metrics.items()}


def update(networks, optimizer, batch, noise, args, loss_fn=losses):
    """One update, in place. Returns its metrics: tensors that the next update may overwrite."""
    optimizer.zero_grad()  # first, to free the old gradients
    loss, metrics = loss_fn(networks, batch, noise, args)
    loss.backward()
    target = list(networks["target_critic"].parameters())
    source = list(networks["critic"].parameters())
    with torch.no_grad():  # (9) before the step, as in the released code
        torch._foreach_lerp_(target, source, args.tau)
    optimizer.step()  # (10)
    return metrics


@torch.no_grad()
def act(actor, observation, action_dim, generator):
    """Actions (..., A) for observations (..., O), both NumPy: one latent, one pass."""
    s = torch.as_tensor(observation, dtype=torch.float32, device=generator.device)
    z = sample_latents(*s.shape[:-1], action_dim, generator=generator)
    return actor(s, z).clamp(-1, 1).cpu().numpy()


# -------------------- data
def benchmark_of(env_name):
    """The module that makes an environment and its data."""
    return import_module("ogbench" if "singletask" in env_name else "tools.d4rl_compat")


def load_data(env_name, data_dir, device):
    """The training data, downloaded if missing, as float32 tensors on the device:
    observations, next_observations (N, O), actions (N, A), rewards and masks (N,)."""
    where = {"dataset_dir": data_dir} if data_dir else {}
    try:
        _, data, _ = benchmark_of(env_name).make_env_and_datasets(env_name, **where)
        size = len(data["rewards"])
        if not all(len(x) == size and np.isfinite(x).all() for x in data.values()):
            raise ValueError("its arrays are not finite or not of one length")
    except Exception as error:
        folder = data_dir or "the benchmark's own folder"
        sys.exit(
            f"error: cannot load {env_name} from {folder}: {error!r:.300}; "
            "docs/data.md names the files, a mirror and a way to make data"
        )
    del data["terminals"]
    data["actions"] = data["actions"].clip(-1 + 1e-5, 1 - 1e-5)  # as in the released code
    return {
        key: torch.as_tensor(value, dtype=torch.float32, device=device)
        for key, value in data.items()
    }


def sample_batch(data, batch_size, generator):
    """A batch drawn uniformly: a dict like data, with B rows."""
    n, device = len(data["rewards"]), generator.device
    index = torch.randint(n, (batch_size,), generator=generator, device=device)
    return {key: value[index] for key, value in data.items()}


# -------------------- evaluation
class Episode(gymnasium.Wrapper):
    """Episodes that their seed determines. A step's info is the score so far, in %."""

    def reset(self, *, seed=None, options=None):
        np.random.seed(seed)  # OGBench's mazes draw from both of these
        self.action_space.seed(seed)
        observation, _ = self.env.reset(seed=seed)
        return observation, {}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        score = info["success"] if "success" in info else info["normalized_score"]
        return observation, reward, terminated, truncated, {"score": 100.0 * score}


def make_env(env_name):
    return Episode(benchmark_of(env_name).make_env_and_datasets(env_name, env_only=True))


def make_envs(env_name, count):
    """count environments, each in a process that ignores Ctrl-C, which this one handles."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited
    envs = gymnasium.vector.AsyncVectorEnv([lambda: make_env(env_name)] * count)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    return envs


def make_seed(*key):
    """A seed for a key of integers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def make_generator(device, *key):
    """A random generator, seeded by a key of integers."""
    return torch.Generator(device).manual_seed(make_seed(*key))


def evaluate(policy, envs, episodes, key):
    """Means over episodes, in rounds, each seeded by (*key, environment, round)."""
    n = envs.num_envs
    results = []
    for number in range(episodes // n):
        observations, _ = envs.reset(seed=[make_seed(*key, i, number) for i in range(n)])
        score, total, length = np.zeros((3, n))
        playing = np.ones(n, bool)  # a finished one is reset, which does not count
        while playing.any():
            observations, reward, terminated, truncated, info = envs.step(policy(observations))
            score[playing] = info["score"][playing]
            total[playing] += reward[playing]
            length[playing] += 1
            playing &= ~(terminated | truncated)
        results.append([score, total, length])
    score, total, length = np.concatenate(results, axis=1)
    return {
        "score": score.mean().item(),
        "return": total.mean().item(),
        "return_std": total.std().item(),
        "length": length.mean().item(),
    }


# -------------------- runs
# Settings that may change on resuming. A change of any other is refused.
MAY_CHANGE = ("steps", "log_interval", "checkpoint_interval", "snapshot_interval", "run_dir",
              "overwrite", "track")


def load_policy(path, device="cpu", seed=0):
    """A checkpoint's policy: from observations to actions, both NumPy (see act)."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    assert saved["algorithm"] == ALGORITHM, f"{path} was made by {saved['algorithm']}.py"
    actor = make_networks(*saved["dims"], torch.Generator())["actor"].to(device)
    actor.load_state_dict({name: saved["networks"][f"actor.{name}"] for name in actor.state_dict()})
    generator = make_generator(device, seed)
    return partial(act, actor, action_dim=saved["dims"][1], generator=generator)


class Run:
    """What training changes, and its folder."""

    def __init__(self, args, env_name, folder, dims):
        self.args, self.env_name, self.folder, self.dims = args, env_name, folder, dims
        self.networks = make_networks(*dims, make_generator("cpu", args.seed, 0)).to(args.device)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=args.lr, fused=True)
        self.batch_generator = make_generator(args.device, args.seed, 1)
        self.noise_generator = make_generator(args.device, args.seed, 2)
        self.step, self.rows = 0, {"train": [], "eval": []}
        if (folder / "checkpoint.pt").exists():
            self.load()
        versions = {name: version(name) for name in ("torch", "mujoco", "ogbench")}
        config = {"algorithm": ALGORITHM, "env_name": env_name, "versions": versions} | vars(args)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        self.writer = SummaryWriter(folder, purge_step=self.step + 1)

    def save(self, name="checkpoint.pt"):
        content = {
            "algorithm": ALGORITHM,
            "env_name": self.env_name,
            "args": vars(self.args),
            "dims": self.dims,
            "step": self.step,
            "rows": self.rows,
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_generator": self.batch_generator.get_state(),
            "noise_generator": self.noise_generator.get_state(),
        }
        buffer = io.BytesIO()  # torch.save to a file hides a full disk
        torch.save(content, buffer)
        (self.folder / "partial").write_bytes(buffer.getbuffer())
        self.writer.flush()
        os.replace(self.folder / "partial", self.folder / name)  # never a partial checkpoint

    def load(self):
        saved = torch.load(self.folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        for name, value in vars(self.args).items():
            before = saved["args"].get(name)
            if name not in MAY_CHANGE and before != value:
                sys.exit(
                    f"error: {self.folder} was made with {name} {before}, not {value}; "
                    "use that, another --exp-name, or --overwrite to delete it"
                )
        self.networks.load_state_dict(saved["networks"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.batch_generator.set_state(saved["batch_generator"])
        self.noise_generator.set_state(saved["noise_generator"])
        self.step, self.rows = saved["step"], saved["rows"]
        for name, rows in self.rows.items():  # drops rows newer than the checkpoint
            if rows:
                pd.DataFrame(rows).to_csv(self.folder / f"{name}.csv", index=False)
        print(f"resumed at update {self.step:,}")

    def record(self, name, row):
        """Adds a row to train.csv or eval.csv, and to TensorBoard."""
        for key, value in row.items():
            self.writer.add_scalar(f"{name}/{key}", value, self.step)
        row = {"step": self.step, **row}
        first = not self.rows[name]
        self.rows[name].append(row)
        path, mode = self.folder / f"{name}.csv", "w" if first else "a"
        pd.DataFrame([row]).to_csv(path, mode=mode, header=first, index=False)


# -------------------- training
def train(run, data, envs):
    """Trains a run from its last checkpoint to its end."""
    args, actor, action_dim = run.args, run.networks["actor"], run.dims[1]
    mode = "reduce-overhead" if args.device == "cuda" else "default"  # CUDA graphs
    loss_fn = torch.compile(losses, mode=mode) if args.compile else losses
    first, start = run.step, time.perf_counter()
    steps = range(first + 1, args.steps + 1)
    for step in tqdm(steps, initial=first, total=args.steps, unit=" updates", disable=None):
        batch = sample_batch(data, args.batch_size, run.batch_generator)
        noise = sample_noise(args, action_dim, run.noise_generator)
        metrics = update(run.networks, run.optimizer, batch, noise, args, loss_fn)
        run.step = step

        log = step % args.log_interval == 0
        evaluation = step % args.eval_interval == 0 or step == args.steps
        checkpoint = step % args.checkpoint_interval == 0 or step == args.steps
        snapshot = args.snapshot_interval and step % args.snapshot_interval == 0
        due = log or evaluation or checkpoint or snapshot
        if due and not all(x.isfinite().all() for x in run.networks.parameters()):
            sys.exit(f"error: a loss was not finite by update {step:,}; try a lower --lr")
        if log:
            row = {name: value.item() for name, value in metrics.items()}
            row["updates_per_second"] = (step - first) / (time.perf_counter() - start)
            run.record("train", row)
        if evaluation:
            generator = make_generator(args.device, args.seed, 3, step)
            policy = partial(act, actor, action_dim=action_dim, generator=generator)
            row = evaluate(policy, envs, args.eval_episodes, (args.seed, step))
            run.record("eval", row)
            tqdm.write(f"update {step:,}: score {row['score']:.1f}")
        if snapshot:
            run.save(f"snapshot{step}.pt")
        if checkpoint:
            run.save()  # last, with this update's rows
    run.writer.close()


# -------------------- published settings
PUBLISHED = {  # OGBench's dataset and default task, discount, q_agg, alpha
    "antmaze-large": ("navigate", 1, 0.99, "min", 10.0),
    "antmaze-giant": ("navigate", 1, 0.995, "min", 10.0),
    "humanoidmaze-medium": ("navigate", 1, 0.995, "mean", 30.0),
    "humanoidmaze-large": ("navigate", 1, 0.995, "mean", 30.0),
    "antsoccer-arena": ("navigate", 4, 0.995, "mean", 10.0),
    "scene": ("play", 2, 0.99, "mean", 300.0),
    "cube-single": ("play", 2, 0.99, "mean", 300.0),
    "cube-double": ("play", 2, 0.99, "mean", 300.0),
    "puzzle-3x3": ("play", 4, 0.99, "mean", 1000.0),
    "puzzle-4x4": ("play", 4, 0.99, "mean", 1000.0),
    "pointmaze-medium": ("navigate", 1, 0.995, "mean", 10.0),  # our choice, not published
    "antmaze-umaze-v2": ("", 0, 0.99, "mean", 10.0),  # from here on D4RL
    "antmaze-umaze-diverse-v2": ("", 0, 0.99, "mean", 10.0),
    "antmaze-medium-play-v2": ("", 0, 0.99, "mean", 10.0),
    "antmaze-medium-diverse-v2": ("", 0, 0.99, "mean", 10.0),
    "antmaze-large-play-v2": ("", 0, 0.99, "mean", 3.0),
    "antmaze-large-diverse-v2": ("", 0, 0.99, "mean", 3.0),
    "pen-human-v1": ("", 0, 0.99, "min", 10_000.0),
    "pen-cloned-v1": ("", 0, 0.99, "min", 10_000.0),
    "pen-expert-v1": ("", 0, 0.99, "min", 3000.0),
    "door-human-v1": ("", 0, 0.99, "min", 30_000.0),
    "door-cloned-v1": ("", 0, 0.99, "min", 30_000.0),
    "door-expert-v1": ("", 0, 0.99, "min", 30_000.0),
    "hammer-human-v1": ("", 0, 0.99, "min", 30_000.0),
    "hammer-cloned-v1": ("", 0, 0.99, "min", 10_000.0),
    "hammer-expert-v1": ("", 0, 0.99, "min", 30_000.0),
    "relocate-human-v1": ("", 0, 0.99, "min", 10_000.0),
    "relocate-cloned-v1": ("", 0, 0.99, "min", 30_000.0),
    "relocate-expert-v1": ("", 0, 0.99, "min", 30_000.0),
}


def resolve(args):
    """Fills in what is unset. Returns the environment's full name and the run's folder."""
    if args.env_id not in PUBLISHED:
        sys.exit(f"error: --env-id {args.env_id} is none of {', '.join(PUBLISHED)}")
    dataset, task, *published = PUBLISHED[args.env_id]
    if args.task and not dataset:
        sys.exit("error: --task is for OGBench's environments; leave it out")
    if args.eval_episodes % args.eval_envs:
        sys.exit("error: --eval-episodes must be a multiple of --eval-envs")
    for name, value in zip(("discount", "q_agg", "alpha"), published, strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.task = args.task or task or None  # None: D4RL
    args.steps = args.steps or (1_000_000 if dataset else 500_000)
    env_name = args.env_id
    if dataset:
        env_name += f"-{dataset}-singletask-task{args.task}-v0"
    method = f"{args.exp_name}-alpha{args.alpha:g}"
    return env_name, Path(args.run_dir).expanduser() / env_name / method / f"seed{args.seed}"


# -------------------- main
def main(argv=None):
    """The command line."""
    os.environ["MUJOCO_GL"] = "disabled"  # no rendering
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # no Box warnings
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    env_name, folder = resolve(args)
    for name, value in (vars(args) | {"folder": folder}).items():
        print(f"  {name:<20} {value}")
    torch.set_float32_matmul_precision(args.matmul_precision)
    with filelock.FileLock(f"{folder}.lock", timeout=0, mode=0o666):
        data = load_data(env_name, args.data_dir, args.device)
        if args.overwrite and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        print(f"{len(data['rewards']):,} transitions")
        envs = make_envs(env_name, args.eval_envs)
        try:
            if args.track:
                import wandb

                wandb.init(name=str(folder), config=vars(args), sync_tensorboard=True)
            dims = (data["observations"].shape[1], data["actions"].shape[1], args.hidden_dims)
            run = Run(args, env_name, folder, dims)
            train(run, data, envs)
        finally:
            for process in envs.processes:  # close() would wait for one that hangs
                process.kill()
            envs.closed = True
    rows = run.rows["eval"][-3:] if args.task else run.rows["eval"][-1:]
    score = np.mean([row["score"] for row in rows])
    print(f"score {score:.1f}, the mean of the last {len(rows)} evaluation(s)")
    print(f"python tools/rollout.py '{folder}/checkpoint.pt' --video out.gif")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        main()
    except filelock.Timeout as error:
        sys.exit(f"error: another process is training this run: {error.lock_file}")
    except KeyboardInterrupt:
        print("\nstopped; the same command, without --overwrite, resumes the run")
        sys.exit(130)

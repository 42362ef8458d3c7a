"""Plays a checkpoint back: scores each episode and, with --video, films the first (GIF or MP4).

python -m tools.rollout runs/.../seed0/checkpoint.pt --episodes 10 --seed 0 --video out.gif
"""

import os
import sys
from pathlib import Path

import gymnasium
import imageio
import numpy as np
import torch
import tyro
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

import drol
import fql


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[Path]  # a run's checkpoint.pt
    episodes: PositiveInt = 10  # episodes to play
    seed: NonNegativeInt = 0  # seed of the episodes and of the policy's noise
    video: Path | None = None  # file to record to, .gif or .mp4
    video_episodes: PositiveInt = 1  # episodes to record, from the first on


def load(path, seed):
    """A checkpoint's environment and policy."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    program = {"drol": drol, "fql": fql}[saved["algorithm"]]
    return program.make_env(saved["env_id"]), program.load_policy(path, seed=seed)


def draw(env):
    """An image (H, W, 3) of an environment."""
    what = "--video: no image; MuJoCo needs EGL (apt-get install libegl1) or MUJOCO_GL=osmesa"
    image = drol.attempt(what, env.render)
    if np.ndim(image) != 3:
        sys.exit("error: --video: no image; make the environment with render_mode='rgb_array'")
    return image


def play(env, policy, seed, frames=None):
    """Plays one episode and adds its images to frames. Returns its score, return and length."""
    observation, _ = env.reset(seed=seed)
    total, length, over, info = 0.0, 0, False, {}
    while True:
        if frames is not None:
            frames.append(draw(env))
        if over:
            return [info["score"], total, length]
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        total += reward
        length += 1
        over = terminated or truncated


def write_video(path, frames):
    """Writes a GIF or an MP4 beside its place, and moves it there once it is whole."""
    options = {"duration": 50, "loop": 0}  # ms per frame
    if path.suffix == ".mp4":
        options = {"fps": 20, "macro_block_size": 2, "ffmpeg_log_level": "quiet"}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    imageio.mimwrite(partial, frames, **options)
    partial.replace(path)
    print(path)


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # no Box warnings
    args.checkpoint = Path(os.path.expanduser(args.checkpoint))
    args.video = args.video and drol.attempt("--video", args.video.expanduser)
    recorded = min(args.video_episodes, args.episodes) if args.video else 0
    if recorded and args.video.suffix not in (".gif", ".mp4"):
        sys.exit(f"error: --video {args.video}: give a name that ends in .gif or .mp4")
    os.environ.setdefault("MUJOCO_GL", "egl" if recorded else "disabled")  # read at its import
    env, policy = drol.attempt(f"cannot play {args.checkpoint}", load, args.checkpoint, args.seed)
    if env is None:
        sys.exit(f"error: {args.checkpoint} was trained on data without an environment")
    if recorded and hasattr(getattr(env.unwrapped, "model", None), "light_castshadow"):
        env.unwrapped.model.light_castshadow[:] = False  # slow where there is no GPU
    line = "{:<12} score {:5.1f}  return {:8.1f}  length {:6.1f}"
    rows, frames = [], []
    for i in range(args.episodes):
        seed = drol.make_seed(args.seed, i)
        rows.append(play(env, policy, seed, frames if i < recorded else None))
        print(line.format(f"episode {i}", *rows[-1]), flush=True)
        if i + 1 == recorded:
            drol.attempt(f"--video {args.video}", write_video, args.video, frames)
    print(line.format("mean", *np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()

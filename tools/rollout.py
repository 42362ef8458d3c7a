"""Plays a checkpoint back: scores each episode and, with --video, records the first ones.

    python tools/rollout.py runs/.../seed0/checkpoint.pt --episodes 10 --seed 0 --video out.gif

The video is a GIF or an MP4. The checkpoint itself says which environment it was trained on and
whether drol.py or fql.py made it.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np
import torch
import tyro
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are

import drol  # noqa: E402
import fql  # noqa: E402


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[Path]  # a run's checkpoint.pt, or one of its snapshots
    episodes: PositiveInt = 10  # episodes to play
    seed: NonNegativeInt = 0  # seed of the episodes and of the policy's noise
    video: Path | None = None  # file to record to, .gif or .mp4
    video_episodes: PositiveInt = 1  # episodes to record, from the first on
    fps: Annotated[int, Field(ge=1, le=100)] = 20  # frames, one per step, per second; 20: real time


PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"


def fail(message):
    sys.exit(f"error: {' '.join(message.split())}")


def prepare_video(path):
    """Ends the program where no video can be made, and sets MUJOCO_GL for the import of MuJoCo."""
    modules = {".gif": ["imageio"], ".mp4": ["imageio", "imageio_ffmpeg"]}.get(path.suffix)
    if modules is None or path.is_dir():
        fail(f"--video {path}: give a file name that ends in .gif or .mp4")
    if not all(map(importlib.util.find_spec, modules)):
        fail(f"--video {path} needs {' and '.join(modules)}: pip install 'imageio[ffmpeg]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()  # fails now rather than after the episodes
    screen = os.environ.get("DISPLAY") or sys.platform != "linux"
    for name in [os.environ.get("MUJOCO_GL"), "glfw" if screen else None, "egl", "osmesa"]:
        if name:
            os.environ["MUJOCO_GL"] = name
            probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False)
            if probe.returncode == 0:
                return
    fail("--video: MuJoCo can draw with neither EGL nor OSMesa: apt-get install libegl1")
def load(path, seed):
    """The program that made a checkpoint, its environment and its policy."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        program, env_name = {"drol": drol, "fql": fql}[saved["algorithm"]], saved["env_name"]
        policy = program.load_policy(path, seed=seed)
    except Exception as error:  # whatever a broken file makes its readers raise
        why = "missing, damaged or of neither drol.py nor fql.py"
        fail(f"checkpoint {path} is {why}: {error!r:.90}")
    return program, program.make_env(env_name), policy


def play(env, policy, seed, frames=None):
    """Plays one episode and adds its frames (H, W, 3), if asked.

    Returns its score, return and length."""
    observation, _ = env.reset(seed=seed)
    if frames is not None:
        env.unwrapped.model.light_castshadow[:] = False  # slow where there is no GPU
        frames.append(env.unwrapped.render())
    total, length, over = 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        total += reward
        length += 1
        over = terminated or truncated
        if frames is not None:
            frames.append(env.unwrapped.render())
    return [info["score"], total, length]


def write_video(path, frames, fps):
    """Writes a GIF or an MP4 under another name and moves it into place once it is whole."""
    import imageio

    options = {
        ".gif": {"duration": 1000 / fps, "loop": 0},
        ".mp4": {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "quiet"},
    }
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        imageio.mimwrite(partial, frames, **options[path.suffix])
        with imageio.get_reader(partial) as reader:
            reader.get_data(0)  # fails where the disk ran full, which ffmpeg keeps to itself
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(path)


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # no Box warnings
    sys.unraisablehook = lambda _: None  # MuJoCo's renderer complains as it is thrown away
    line = "{:<12} score {:5.1f}  return {:8.1f}  length {:6.1f}"
    recorded = min(args.video_episodes, args.episodes) if args.video else 0
    rows, frames = [], []
    try:
        if args.video:
            prepare_video(args.video)
        else:
            os.environ["MUJOCO_GL"] = "disabled"  # scores need no renderer
        program, env, policy = load(args.checkpoint, args.seed)
        for i in range(args.episodes):
            seed = program.make_seed(args.seed, i)
            rows.append(play(env, policy, seed, frames if i < recorded else None))
            print(line.format(f"episode {i}", *rows[-1]), flush=True)
            if i + 1 == recorded:
                write_video(args.video, frames, args.fps)
    except ImportError as error:  # of what D4RL's tasks need
        fail(str(error))
    except OSError as error:
        reason = str(error).partition("\n")[0]  # ffmpeg adds its whole log
        fail(f"--video {args.video} cannot be written: {reason}" if args.video else reason)
    except KeyboardInterrupt:
        sys.exit(130)
    print(line.format("mean", *np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()

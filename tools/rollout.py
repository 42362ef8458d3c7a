"""Plays a checkpoint back: scores each episode and, with --video, records the first ones as a GIF or an MP4.

    python tools/rollout.py runs/.../seed0/checkpoint.pt --episodes 10 --seed 0 --video out.gif

The checkpoint itself says which environment it was trained on and whether drol.py or fql.py made it.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[Path]  # a run's checkpoint.pt, or one of its snapshots
    episodes: int = 10  # episodes to play
    seed: int = 0  # seed of the episodes and of the policy's noise
    video: Path | None = None  # file to record to, .gif or .mp4
    video_episodes: int = 1  # how many episodes to record, from the first on
    fps: int = 20  # frames a second; a frame is one step, so 20 is real time for cube, scene and puzzle


PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"


def fail(message):
    sys.exit(f"error: {' '.join(str(message).split())}")


def check(args):
    """Ends the program where args cannot work."""
    for flag, low, high in (("episodes", 1, 1e9), ("seed", 0, 1e9), ("video_episodes", 1, 1e9), ("fps", 1, 100)):
        if not low <= getattr(args, flag) <= high:
            fail(f"--{flag.replace('_', '-')} {getattr(args, flag)}: give {low} to {high:g}")
    if args.video:
        if args.video.suffix not in (".gif", ".mp4") or args.video.is_dir():
            fail(f"--video {args.video}: give a file name that ends in .gif or .mp4")
        needed = {"imageio": "imageio"} | ({"imageio_ffmpeg": "imageio[ffmpeg]"} if args.video.suffix == ".mp4" else {})
        for module, package in needed.items():
            if importlib.util.find_spec(module) is None:
                fail(f"--video {args.video} needs {module}, which is not installed: pip install '{package}'")


def choose_renderer():
    """Sets MUJOCO_GL to what can draw here: the user's choice, else a display, EGL or OSMesa."""
    choices = ["glfw"] if "DISPLAY" in os.environ or sys.platform != "linux" else []
    choices = [os.environ["MUJOCO_GL"]] if os.environ.get("MUJOCO_GL") else [*choices, "egl", "osmesa"]
    for choice in choices:
        os.environ["MUJOCO_GL"] = choice
        if not subprocess.run([sys.executable, "-c", PROBE], capture_output=True).returncode:
            return
    fail(f"--video: MuJoCo cannot draw here (tried MUJOCO_GL={', '.join(choices)}); unset MUJOCO_GL if you set "
         f"it, and install a renderer: apt-get install libegl1, or libosmesa6 where there is no GPU")


def load(path, seed, draw):
    """The checkpoint's module, its environment and its policy. MuJoCo is imported here, not before."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        algorithm, name = saved["algorithm"], saved["env"]
        if algorithm not in ("drol", "fql"):
            raise ValueError(algorithm)
    except Exception:  # whatever a broken file makes torch raise
        fail(f"checkpoint {path} is missing, damaged or of neither drol.py nor fql.py")
    if draw:
        choose_renderer()
    else:
        os.environ["MUJOCO_GL"] = "disable"  # scores need no renderer
    try:
        module = importlib.import_module(algorithm)
        return module, module.make_env(name), module.load_policy(path, seed=seed)
    except Exception as error:
        fail(f"checkpoint {path} cannot be played: {error}")


@contextlib.contextmanager
def open_video(path, fps):
    """A function that adds a frame (H, W, 3). The file gets its name once it is whole."""
    import imageio

    options = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps, "macro_block_size": 2}
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # fails now rather than after the episodes
        with imageio.get_writer(partial, **options) as writer:
            yield writer.append_data
        os.replace(partial, path)
    except OSError as error:
        fail(f"--video {path} cannot be written: {error}")
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def play(env, policy, seed, add_frame=None):
    """Plays one episode. Returns its score, return and length."""
    observation, info = env.reset(seed=seed)
    while True:
        if add_frame:
            add_frame(env.unwrapped.render())
        if info:  # only the last step has one
            return [info["score"], info["return"], info["length"]]
        observation, _, _, _, info = env.step(policy(observation))


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    warnings.simplefilter("ignore")
    check(args)
    module, env, policy = load(args.checkpoint, args.seed, bool(args.video))
    line, rows = "{:<12} score {:5.1f}  return {:8.1f}  length {:6.1f}", []

    def play_on(count, add_frame=None):
        while len(rows) < count:
            rows.append(play(env, policy, module.make_seed(args.seed, len(rows)), add_frame))
            print(line.format(f"episode {len(rows)}", *rows[-1]), flush=True)

    try:
        if args.video:
            with open_video(args.video, args.fps) as add_frame:
                play_on(min(args.video_episodes, args.episodes), add_frame)
            print(args.video)
        play_on(args.episodes)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        renderer = getattr(env.unwrapped, "custom_renderer", getattr(env.unwrapped, "_renderer", None))
        if renderer:
            renderer.close()  # left to the interpreter's end, it complains
    print(line.format("mean", *torch.tensor(rows, dtype=torch.float64).mean(0).tolist()))


if __name__ == "__main__":
    main()

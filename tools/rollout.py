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
    video_episodes: int = 1  # episodes to record, from the first on
    fps: int = 20  # frames a second; a frame is one step, so 20 is real time for cube, scene and puzzle


PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"


def fail(message):
    sys.exit(f"error: {' '.join(message.split())}")


def check(args):
    """Ends the program where args cannot work."""
    if min(args.episodes, args.video_episodes, args.seed + 1) < 1 or not 1 <= args.fps <= 100:
        fail("give --episodes and --video-episodes 1 or more, --seed 0 or more, --fps 1 to 100")
    if args.video:
        if args.video.suffix not in (".gif", ".mp4") or args.video.is_dir():
            fail(f"--video {args.video}: give a file name that ends in .gif or .mp4")
        modules, package = ["imageio"], "imageio"
        if args.video.suffix == ".mp4":
            modules, package = ["imageio", "imageio_ffmpeg"], "imageio[ffmpeg]"
        if not all(map(importlib.util.find_spec, modules)):
            fail(f"--video {args.video} needs {package}, which is not installed: pip install '{package}'")


def choose_renderer():
    """Sets MUJOCO_GL to what can draw here: the user's choice, else a display, EGL or OSMesa."""
    display = ["glfw"] if "DISPLAY" in os.environ or sys.platform != "linux" else []
    given = os.environ.get("MUJOCO_GL")
    for name in [given] if given else [*display, "egl", "osmesa"]:
        os.environ["MUJOCO_GL"] = name
        if subprocess.run([sys.executable, "-c", PROBE], capture_output=True).returncode == 0:
            return
    fail(f"--video: MuJoCo cannot draw with MUJOCO_GL={given}; unset it" if given else
         "--video: MuJoCo can draw with neither EGL nor OSMesa: apt-get install libegl1, or libosmesa6")


def load(args):
    """The checkpoint's module, environment and policy. MuJoCo is imported here, and not before."""
    try:
        saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
        if saved["algorithm"] not in ("drol", "fql"):
            raise ValueError(saved["algorithm"])
    except Exception:  # whatever a broken file makes torch raise
        fail(f"checkpoint {args.checkpoint} is missing, damaged or of neither drol.py nor fql.py")
    if args.video:
        choose_renderer()
    else:
        os.environ["MUJOCO_GL"] = "disable"  # scores need no renderer
    try:
        module = importlib.import_module(saved["algorithm"])
        return module, module.make_env(saved["env"]), module.load_policy(args.checkpoint, seed=args.seed)
    except Exception as error:
        fail(f"checkpoint {args.checkpoint} cannot be played: {error!r}")


@contextlib.contextmanager
def open_video(path, fps):
    """A function that adds a frame (H, W, 3). The file gets its name once it is whole."""
    import imageio

    options = {".gif": {"duration": 1000 / fps, "loop": 0}, ".mp4": {"fps": fps, "macro_block_size": 2}}
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # fails now rather than after the episodes
        with imageio.get_writer(partial, **options[path.suffix]) as writer:
            yield writer.append_data
        os.replace(partial, path)
        print(path)
    except OSError as error:
        fail(f"--video {path} cannot be written: {error}")
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def play(env, policy, seed, add_frame):
    """Plays one episode. Returns its score, return and length."""
    observation, info = env.reset(seed=seed)
    if add_frame:
        env.unwrapped.model.light_castshadow[:] = False  # most of the drawing time where there is no GPU
    while True:
        if add_frame:
            add_frame(env.unwrapped.render())
        if info:  # only the last step has one
            return [info["score"], info["return"], info["length"]]
        observation, _, _, _, info = env.step(policy(observation))


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    warnings.simplefilter("ignore")
    check(args)
    module, env, policy = load(args)
    rows, line = [], "{:<12} score {:5.1f}  return {:8.1f}  length {:6.1f}"
    try:
        with contextlib.ExitStack() as stack:
            add_frame = stack.enter_context(open_video(args.video, args.fps)) if args.video else None
            for i in range(args.episodes):
                if i == args.video_episodes:
                    add_frame = stack.close()  # None: the rest is played unseen
                rows.append(play(env, policy, module.make_seed(args.seed, i), add_frame))
                print(line.format(f"episode {i}", *rows[-1]), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for name in ("custom_renderer", "_renderer"):  # of mazes, of manipulation; left open it complains at exit
            if renderer := getattr(env.unwrapped, name, None):
                renderer.close()
    print(line.format("mean", *torch.tensor(rows, dtype=torch.float64).mean(0).tolist()))


if __name__ == "__main__":
    main()

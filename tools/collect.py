"""Makes a dataset locally, with no download of data.

    python tools/collect.py --env-id cube-single --episodes 100 --data-dir data
    python tools/collect.py --env-id door-expert-v1 --policy door-v0.pickle --data-dir data

OGBench's `play` (cube, scene, puzzle) and `navigate` (pointmaze) datasets come from the scripted
oracles inside the ogbench package (tools/collect_ogbench.py). Written are `<dataset>.npz` and
`<dataset>-val.npz` (one tenth more episodes) in the official format. antmaze, humanoidmaze and
antsoccer cannot be made this way: their data comes from trained walkers.

D4RL's expert datasets of pen, door, hammer and relocate come from the DAPG policies that D4RL
recorded (tools/collect_d4rl.py): the files `dapg/policies/*.pickle` of
github.com/aravindr93/hand_dapg. Written is `<env-id>.hdf5` in D4RL's format.

Each file says inside, under `source`, that it was made here. With fewer episodes than the official
dataset has, a score on it is not comparable with a published one.
"""

import importlib
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tqdm import tqdm

os.environ["MUJOCO_GL"] = "disabled"  # nothing is drawn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where tools is

CUBES = ("cube-single", "cube-double", "cube-triple", "cube-quadruple")
PUZZLES = ("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6")
MAZES = ("pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport")
EXPERTS = ("pen-expert-v1", "door-expert-v1", "hammer-expert-v1", "relocate-expert-v1")
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


@dataclass
class Args:
    env_id: Literal[*CUBES, "scene", *PUZZLES, *MAZES, *EXPERTS]  # whose data to make
    policy: Path | None = None  # of D4RL's task: DAPG's pickle, or an npz file of its arrays
    episodes: PositiveInt | None = None  # for training; unset: 100, D4RL 5000, --report 200
    report: bool = False  # D4RL: write nothing, print the policy's normalised returns
    data_dir: Path = Path("data")  # not the cache of ogbench or d4rl, which is for official data
    seed: NonNegativeInt = 0  # gives the same files on one machine, whatever the number of jobs
    jobs: PositiveInt = CORES  # processes


# -------------------- playing
def end_with_parent():
    """Ends this worker once the process that started it is gone, even by SIGKILL."""
    multiprocessing.parent_process().join()
    os._exit(1)


def start_worker(make_env, env_id):
    global worker_env
    threading.Thread(target=end_with_parent, daemon=True).start()
    worker_env = make_env(env_id)


def play_one(play_episode, seed, index):
    """Episode `index`, a function of the arguments alone, as arrays in the official types."""
    episode_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    steps = play_episode(worker_env, episode_seed)
    types = {"terminals": bool, "timeouts": bool, "button_states": np.int64}
    return {key: np.asarray(x, dtype=types.get(key, np.float32)) for key, x in steps.items()}


def play(args, make_env, play_episode, count):
    """Episodes 0 to count - 1, in order. Returns a list of dicts of arrays."""
    pool = ProcessPoolExecutor(
        max_workers=min(args.jobs, count),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(make_env, args.env_id),
    )
    try:
        stops = [signal.SIGINT, signal.SIGTERM]
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # in the workers for good
        results = [pool.submit(play_one, play_episode, args.seed, i) for i in range(count)]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
        with tqdm(results, desc=args.env_id, unit="episode") as progress:
            return [result.result() for result in progress]
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()  # whatever it plays
        pool.shutdown()


# -------------------- saving
def is_there(folder, names, kind, source):
    """Whether these very files are in the folder. Ends the program where they must not be."""
    if folder.resolve() == Path(os.path.expanduser(kind.CACHE)).resolve():
        sys.exit(f"error: {folder} is for official data; choose another --data-dir")
    paths = [folder / name for name in names]
    for path in filter(Path.exists, paths):
        try:
            found = kind.read_source(path)
        except Exception as error:  # whatever a damaged file makes its reader raise
            sys.exit(f"error: {path} is damaged ({error!r:.90}); delete it")
        if found != source:
            sys.exit(
                f"error: {path} already holds other data ({found}); move it away, or choose "
                "another --data-dir"
            )
    return all(map(Path.exists, paths))


def write(folder, files):
    """Writes {name: content} into a folder: all of it, or nothing. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        for name, content in files.items():
            Path(aside, name).write_bytes(content)
        for name in files:
            os.replace(Path(aside, name), folder / name)


def save(folder, files, kind, source):
    """Writes {name: content}, into another folder where this one does not take it: the user is
    asked for one, and without a terminal it is a temporary one. Returns the folder."""
    while True:
        try:
            is_there(folder, files, kind, source)
            write(folder, files)
            return folder
        except (OSError, SystemExit) as error:
            print(f"\nnot saved in {folder}: {error}", file=sys.stderr)
        if not os.isatty(0):
            break
        answer = input("Another folder (Enter: the same, Ctrl-C: give up): ")
        folder = Path(os.path.expanduser(answer)) if answer else folder
    try:
        spare = Path(tempfile.mkdtemp(prefix="collected-"))
        write(spare, files)
    except OSError as error:
        sys.exit(f"error: the episodes are lost, as the temporary folder is full too: {error}")
    sys.exit(f"error: the episodes are in {spare} instead; move its files to {folder}")


# -------------------- the two kinds
def collect(args, kind):
    """Makes the files that kind.plan describes."""
    counts, play_episode, source = kind.plan(args)
    folder = Path(os.path.expanduser(args.data_dir))
    try:
        if is_there(folder, counts, kind, source):
            print(f"{folder / next(iter(counts))} is already there ({source})")
            return
        write(folder, {})  # fails now rather than after the episodes
    except OSError as error:
        sys.exit(f"error: --data-dir {folder} cannot be used ({error}); choose another")
    episodes = play(args, kind.make_env, play_episode, sum(counts.values()))
    rest, files = iter(episodes), {}
    for name, count in counts.items():
        part = list(islice(rest, count))
        arrays = {key: np.concatenate([episode[key] for episode in part]) for key in part[0]}
        file = io.BytesIO()
        kind.write(file, arrays, source)
        files[name] = file.getbuffer()
    folder = save(folder, files, kind, source)
    for name, count in counts.items():
        print(f"{folder / name}: {count} episodes")
    if args.env_id in EXPERTS:
        print(kind.summary(args.env_id, episodes))


def report(args, kind):
    """Scores the policy of D4RL's task, without and with its noise."""
    count, policy = args.episodes or 200, kind.load_policy(args)
    for noise, title in ((0, "mean actions"), (1, "sampled actions")):
        episodes = play(args, kind.make_env, partial(kind.play_episode, policy, noise), count)
        summary = kind.summary(args.env_id, episodes)
        print(f"{args.env_id}, {title}, {count} episodes: {summary}")


def main(argv=None):
    """The command line."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    expert = args.env_id in EXPERTS
    if expert != bool(args.policy) or (args.report and not expert):
        sys.exit(
            f"error: {', '.join(EXPERTS)} need --policy, such as dapg/policies/door-v0.pickle of "
            "github.com/aravindr93/hand_dapg; --policy and --report are for these alone"
        )
    try:
        kind = importlib.import_module(f"tools.collect_{'d4rl' if expert else 'ogbench'}")
    except ImportError as error:  # says what to install
        sys.exit(f"error: {error}")
    (report if args.report else collect)(args, kind)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (KeyboardInterrupt, EOFError):
        print("\nstopped; nothing was saved", file=sys.stderr)
        sys.exit(130)

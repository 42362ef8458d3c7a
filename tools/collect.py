"""Makes an OGBench dataset locally, with no download, from the scripted oracles inside the ogbench package.

    python tools/collect.py --env-id cube-single --episodes 100 --data-dir data

It follows the generation settings that OGBench published for its `play` (cube, scene, puzzle) and `navigate`
(pointmaze) datasets and writes `<dataset>.npz` and `<dataset>-val.npz` (one tenth more episodes) in the official
format, so that ogbench's own loader reads them. A further key, `source`, says that the file was made here:
a score on such data is not comparable with a published one.

antmaze, humanoidmaze and antsoccer cannot be made this way: their data comes from trained walkers.
"""

import concurrent.futures
import importlib.metadata
import multiprocessing
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is drawn here; without this glfw asks for a display
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32.*")

import gymnasium
import numpy as np
import ogbench  # registers the environments
import tyro
from tqdm import tqdm

CACHE = Path(ogbench.utils.DEFAULT_DATASET_DIR).expanduser()
PLAY = ["cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene",
        "puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6"]  # fmt: skip
NAVIGATE = ["pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport"]
P_STACK = {"cube-single": (0, 0), "cube-double": (0, 0.25), "cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5)}


@dataclass
class Args:
    env_id: str
    """the family, such as cube-single, scene, puzzle-3x3 or pointmaze-medium"""
    episodes: int = 100
    """training episodes of 1001 steps (pointmaze-giant: 2001); one tenth more are made for validation"""
    data_dir: Path = Path("data")
    """where the two files go; not ogbench's own cache, which is for official data"""
    seed: int = 0
    """the same seed gives the same files, whatever the number of jobs"""
    jobs: int = os.cpu_count() or 1
    """processes"""


def make_env(family):
    """The family's data-collection environment: no task, no termination, 1001 (giant: 2001) steps an episode."""
    kwargs = {"mode": "data_collection"} if family in PLAY else {}
    steps = 2001 if family == "pointmaze-giant" else 1001
    return gymnasium.make(f"{family}-v0", terminate_at_goal=False, max_episode_steps=steps, **kwargs)


def record(steps, observation, action, done, info):
    steps["observations"].append(observation)
    steps["actions"].append(action)
    steps["terminals"].append(done)
    for key in ("qpos", "qvel", "button_states"):
        if f"prev_{key}" in info:
            steps.setdefault(key, []).append(info[f"prev_{key}"])


def play_episode(env, family, seed):
    """One episode of plan oracles that reach one random target after another (OGBench generate_manipspace.py)."""
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    noise = {"noise": 0.1, "noise_smoothing": 0.5}
    if family.startswith("puzzle"):
        oracles = {"button": ButtonPlanOracle(env=env, gripper_always_closed=True, **noise)}
    else:
        kinds = {"cube": CubePlanOracle, "button": ButtonPlanOracle, "drawer": DrawerPlanOracle,
                 "window": WindowPlanOracle}  # fmt: skip
        kinds = kinds if family == "scene" else {"cube": CubePlanOracle}
        oracles = {target: kind(env=env, **noise) for target, kind in kinds.items()}

    observation, info = env.reset(seed=seed)
    while True:  # a scene episode that loses its cube is drawn again
        steps = {"observations": [], "actions": [], "terminals": []}
        p_stack = np.random.uniform(*P_STACK[family]) if family in P_STACK else 0.5
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        done = False
        while not done:
            action = np.clip(oracle.select_action(observation, info), -1, 1)
            next_observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            if oracle.done:
                target_observation, target_info = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[target_info["privileged/target_task"]]
                oracle.reset(target_observation, target_info)
            record(steps, observation, action, done, info)
            observation = next_observation
        if family != "scene" or scene_is_healthy(np.array(steps["qpos"])):
            return steps
        observation, info = env.reset()


def scene_is_healthy(qpos):
    """Whether the cube stayed in view or in the drawer all along. qpos: (T, nq), the cube's xyz at 14:17."""
    y, z = qpos[:, 15], qpos[:, 16]
    too_far_right = y >= 0.29
    left_outside_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (too_far_right | left_outside_drawer).any()


def free_and_goal_cells(maze):
    """The free cells of a maze map, and those of them that are not a straight corridor."""
    free = [tuple(cell) for cell in np.argwhere(maze == 0).tolist()]
    goals = []
    for i, j in free:
        vertical, horizontal = (maze[i - 1, j], maze[i + 1, j]), (maze[i, j - 1], maze[i, j + 1])
        if (vertical, horizontal) not in (((0, 0), (1, 1)), ((1, 1), (0, 0))):
            goals.append((i, j))
    return free, goals


def navigate_episode(env, family, seed):
    """One episode of walking to one random goal after another, with noise (OGBench generate_locomaze.py)."""
    maze = env.unwrapped
    free, goals = free_and_goal_cells(maze.maze_map)
    task = {"init_ij": free[np.random.randint(len(free))], "goal_ij": goals[np.random.randint(len(goals))]}
    observation, _ = env.reset(seed=seed, options={"task_info": task})
    steps = {"observations": [], "actions": [], "terminals": []}
    done = False
    while not done:
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        direction = subgoal - maze.get_xy()
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        action = np.clip(direction + np.random.normal(0, 0.5, direction.shape), -1, 1)
        next_observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        if info["success"]:
            maze.set_goal(goals[np.random.randint(len(goals))])
        record(steps, observation, action, done, info)
        observation = next_observation
    return steps


def start_worker(family):
    global worker_env
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    worker_env = make_env(family)


def collect_episode(family, seed, index):
    """Episode `index`, a function of (family, seed, index) alone. Returns a dict of arrays in the official types."""
    episode_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    np.random.seed(episode_seed)  # the oracles and mazes draw from NumPy's global generator
    worker_env.action_space.seed(episode_seed)
    episode = play_episode if family in PLAY else navigate_episode
    types = {"terminals": bool, "button_states": np.int64}
    steps = episode(worker_env, family, episode_seed)
    return {key: np.asarray(values, dtype=types.get(key, np.float32)) for key, values in steps.items()}


def save(path, episodes, source):
    """Writes one official-format file under another name and moves it into place once it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            arrays = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
            np.savez_compressed(file, **arrays, source=np.array(source))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def source_of(path):
    """Where a dataset file says that it came from."""
    try:
        with np.load(path) as file:
            return str(file["source"]) if "source" in file else "an official dataset"
    except Exception as error:  # whatever a broken file makes its reader raise
        sys.exit(f"error: {path} is damaged ({error}); delete it or choose another --data-dir")


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.env_id.split("-")[0] in ("antmaze", "humanoidmaze", "antsoccer"):
        sys.exit(f"error: --env-id {args.env_id}: this data comes from trained walkers and cannot be collected with a "
                 f"scripted oracle; drol.py downloads the official dataset")  # fmt: skip
    if args.env_id not in PLAY + NAVIGATE:
        sys.exit(f"error: --env-id {args.env_id}: choose one of {', '.join(PLAY + NAVIGATE)}")
    for flag in ("episodes", "jobs"):
        if getattr(args, flag) < 1:
            sys.exit(f"error: --{flag} {getattr(args, flag)}: give 1 or more")
    if args.seed < 0:
        sys.exit(f"error: --seed {args.seed}: give 0 or more")
    if args.data_dir.expanduser().resolve() == CACHE.resolve():
        sys.exit(f"error: --data-dir {args.data_dir} is ogbench's cache of official data; collected data needs a "
                 f"folder of its own")  # fmt: skip

    kind = "play" if args.env_id in PLAY else "navigate"
    train = args.data_dir.expanduser() / f"{args.env_id}-{kind}-v0.npz"
    validation = train.with_name(f"{train.stem}-val.npz")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("ogbench", "mujoco"))
    source = f"collected locally: {args.episodes} episodes, seed {args.seed}, {versions}"
    found = [source_of(path) for path in (train, validation) if path.exists()]
    if found == [source, source]:
        print(f"{train} is already there ({source})")
        return
    for other in set(found) - {source}:  # one file of ours alone is what a cut-off call left: it is made again
        sys.exit(f"error: {train} or {validation.name} already holds other data ({other}); move it away or choose "
                 f"another --data-dir")
    try:
        train.parent.mkdir(parents=True, exist_ok=True)
        save(train.with_name(f".{train.stem}.writable"), [{"probe": np.zeros(1)}], source)
        train.with_name(f".{train.stem}.writable").unlink()
    except OSError as error:
        sys.exit(f"error: --data-dir {args.data_dir} cannot be written ({error.strerror}); choose another folder")

    count = args.episodes + max(1, args.episodes // 10)
    pool = concurrent.futures.ProcessPoolExecutor(
        max_workers=min(args.jobs, count),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(args.env_id,),
    )
    try:
        results = pool.map(collect_episode, [args.env_id] * count, [args.seed] * count, range(count))
        episodes = list(tqdm(results, total=count, desc=train.stem, unit="episode", dynamic_ncols=True))
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
    pool.shutdown()
    save(validation, episodes[args.episodes :], source)
    save(train, episodes[: args.episodes], source)
    transitions = sum(len(episode["actions"]) - 1 for episode in episodes[: args.episodes])
    print(f"{train}: {args.episodes} episodes, {transitions:,} transitions; validation beside it")


if __name__ == "__main__":
    main()

"""Makes a dataset locally, with no download of data.

    python -m tools.collect --env-id cube-single --episodes 100 --data-dir data
    python -m tools.collect --env-id door-expert-v1 --policy door-v0.pickle --data-dir data

OGBench's `play` (cube, scene, puzzle) and `navigate` (pointmaze) data comes from the oracles inside
the ogbench package, D4RL's expert data from the policies that D4RL recorded (dapg/policies/*.pickle
of github.com/aravindr93/hand_dapg). A file says inside, under `source`, that it was made here.
"""

import io
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

os.environ["MUJOCO_GL"] = "disabled"  # before MuJoCo is imported: nothing is drawn

import gymnasium
import numpy as np
import ogbench
import tyro
from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tqdm import tqdm

P_STACK = {  # range of the probability that a cube's target is on another cube
    "cube-single": (0, 0),
    "cube-double": (0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
PUZZLES = ("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6")
MAZES = ("pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport")
FAMILIES = (*P_STACK, "scene", *PUZZLES, *MAZES)
EXPERTS = ("pen-expert-v1", "door-expert-v1", "hammer-expert-v1", "relocate-expert-v1")
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


@dataclass
class Args:
    env_id: str  # whose data to make, as drol.py's: such as scene or door-expert-v1
    policy: Path | None = None  # of D4RL's task: DAPG's pickle, or an npz file of its arrays
    episodes: PositiveInt | None = None  # for training; unset: 100, D4RL 5000
    report: bool = False  # D4RL: write nothing, print the policy's normalised returns
    data_dir: Path = Path("data")  # not the cache of ogbench or d4rl, which is for official data
    seed: NonNegativeInt = 0  # gives the same files on one machine, whatever the number of jobs
    jobs: PositiveInt = CORES  # processes


# -------------------- OGBench's recipes, of its generate_manipspace.py and generate_locomaze.py
def recipe(args):
    """What collect needs to make the dataset of one of OGBench's environments."""
    name = r"(?P<family>.*?)(-(?P<kind>play|navigate)((-singletask(-task[1-5])?)?-v0)?)?"
    family, given = re.fullmatch(name, args.env_id).group("family", "kind")
    kind = "navigate" if "maze" in family else "play"
    if family not in FAMILIES or given not in (None, kind):
        sys.exit(
            f"error: --env-id {args.env_id} is none of {', '.join(FAMILIES + EXPERTS)}; other data "
            "than theirs needs a download (docs/data.md)"
        )
    count, dataset = args.episodes or 100, f"{family}-{kind}-v0"
    return SimpleNamespace(
        files={f"{dataset}.npz": count, f"{dataset}-val.npz": max(1, count // 10)},
        source=f"collected locally: {count} episodes, seed {args.seed}, "
        f"ogbench {version('ogbench')}, mujoco {version('mujoco')}",
        official=ogbench.utils.DEFAULT_DATASET_DIR,
        make_env=partial(make_env, family),
        play_episode=partial(navigate if "maze" in family else play, family),
        read=np.load,
        save=np.savez_compressed,
    )


def make_env(family):
    """The family's data-collection environment: no task, no end but the time limit."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # of Box's precision
    kwargs = {} if "maze" in family else {"mode": "data_collection"}
    kwargs["max_episode_steps"] = 2001 if family == "pointmaze-giant" else 1001
    return gymnasium.make(f"{family}-v0", terminate_at_goal=False, **kwargs)


def step_of(observation, action, done, info):
    """What a dataset has of a step, among it the state before the action."""
    state = {key[5:]: value for key, value in info.items() if key.startswith("prev_")}
    return {"observations": observation, "actions": action, "terminals": done} | state


def play(family, env, seed):
    """An episode of plan oracles that reach one random target after another, as a list of steps."""
    noise, closed = {"noise": 0.1, "noise_smoothing": 0.5}, family.startswith("puzzle")
    oracles = {
        "cube": cube_plan.CubePlanOracle(env=env, **noise),
        "button": button_plan.ButtonPlanOracle(env=env, gripper_always_closed=closed, **noise),
        "drawer": drawer_plan.DrawerPlanOracle(env=env, **noise),
        "window": window_plan.WindowPlanOracle(env=env, **noise),
    }
    observation, info = env.reset(seed=seed)
    while True:  # a scene episode that loses its cube is drawn again
        steps, done = [], False
        p_stack = np.random.uniform(*P_STACK[family]) if family in P_STACK else 0.5
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        while not done:
            action = np.clip(oracle.select_action(observation, info), -1, 1)
            next_observation, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            if oracle.done:
                target_observation, target_info = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[target_info["privileged/target_task"]]
                oracle.reset(target_observation, target_info)
            steps.append(step_of(observation, action, done, info))
            observation = next_observation
        if family != "scene" or scene_is_healthy(np.array([step["qpos"] for step in steps])):
            return steps
        observation, info = env.reset()


def scene_is_healthy(qpos):
    """Whether the cube stayed in view or in the drawer. qpos: (T, nq), the cube's xyz at 14:17."""
    y, z = qpos[:, 15], qpos[:, 16]
    too_far_right = y >= 0.29
    left_outside_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (too_far_right | left_outside_drawer).any()


def navigate(family, env, seed):
    """An episode of walking to one random goal after another, with noise, as a list of steps."""
    maze = env.unwrapped
    free, goals = free_and_goal_cells(maze.maze_map)
    start = free[np.random.randint(len(free))]
    goal = goals[np.random.randint(len(goals))]
    task = {"init_ij": start, "goal_ij": goal}
    observation, _ = env.reset(seed=seed, options={"task_info": task})
    steps, done = [], False
    while not done:
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        direction = subgoal - maze.get_xy()
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        action = np.clip(direction + np.random.normal(0, 0.5, direction.shape), -1, 1)
        next_observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        if info["success"]:
            maze.set_goal(goals[np.random.randint(len(goals))])
        steps.append(step_of(observation, action, done, info))
        observation = next_observation
    return steps


def free_and_goal_cells(maze):
    """The free cells of a maze map, and those of them that are not in a straight corridor."""
    free = [tuple(cell) for cell in np.argwhere(maze == 0).tolist()]
    around = [(maze[i - 1, j], maze[i + 1, j], maze[i, j - 1], maze[i, j + 1]) for i, j in free]
    corridors = ((0, 0, 1, 1), (1, 1, 0, 0))
    return free, [cell for cell, x in zip(free, around, strict=True) if x not in corridors]


# -------------------- playing
def start_worker(make_env):
    global worker_env

    def end_with_parent():  # even where that was killed
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    worker_env = make_env()


def play_one(play_episode, seed, index):
    """Episode `index`, a function of the arguments alone, as arrays in the official types."""
    seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    np.random.seed(seed)  # OGBench's oracles and mazes draw from NumPy's global generator
    worker_env.action_space.seed(seed)
    steps = play_episode(worker_env, seed)
    types = {"terminals": bool, "timeouts": bool, "button_states": np.int64}
    return {k: np.array([x[k] for x in steps], types.get(k, np.float32)) for k in steps[0]}


def play_all(args, recipe):
    """All episodes of a recipe, in order."""
    count, context = sum(recipe.files.values()), multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(args.jobs, count), context, start_worker, (recipe.make_env,))
    try:
        stops = [signal.SIGINT, signal.SIGTERM]
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # in the workers for good
        results = [pool.submit(play_one, recipe.play_episode, args.seed, i) for i in range(count)]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
        with tqdm(results, args.env_id, unit="episode") as progress:
            return [result.result() for result in progress]
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()  # whatever it plays
        pool.shutdown()


# -------------------- files
def source_of(path, recipe):
    """Where a dataset file says that it came from."""
    try:
        file = recipe.read(path)
        return str(getattr(file, "attrs", file).get("source", "official or unknown"))
    except Exception as error:  # whatever a damaged file makes its reader raise
        return f"damaged, {error!r:.90}"


def write(folder, contents):
    """Writes {name: bytes} into a folder: all of it, or nothing, which ends the program."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            for name, content in contents.items():
                Path(aside, name).write_bytes(content)
            for name in contents:
                os.replace(Path(aside, name), folder / name)
    except OSError as error:
        sys.exit(f"error: --data-dir {folder} cannot be written ({error}); choose another")


def collect(args, recipe):
    """Makes a recipe's files, unless they are there. Returns the episodes that were played."""
    folder = Path(os.path.expanduser(args.data_dir))
    official = Path(os.path.expanduser(recipe.official))
    if str(folder).startswith("~") or folder.resolve() == official.resolve():
        sys.exit(f"error: {folder} is no place for collected data; choose another --data-dir")
    there = [folder / name for name in recipe.files if os.path.exists(folder / name)]
    for path in there:
        found = source_of(path, recipe)
        if found != recipe.source:
            sys.exit(f"error: {path} is other data ({found}); choose another --data-dir")
    if len(there) == len(recipe.files):
        print(f"{there[0]} is already there ({recipe.source})")
        return []
    write(folder, {})  # fails now rather than after the episodes
    episodes = play_all(args, recipe)
    rest, contents = iter(episodes), {}
    for name, count in recipe.files.items():
        part, file = list(islice(rest, count)), io.BytesIO()
        arrays = {key: np.concatenate([episode[key] for episode in part]) for key in part[0]}
        recipe.save(file, **arrays, source=recipe.source)
        contents[name] = file.getbuffer()
    write(folder, contents)
    print(f"{folder}: {', '.join(contents)}")
    return episodes


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.env_id not in EXPERTS and not args.policy and not args.report:
        collect(args, recipe(args))
        return
    if args.env_id not in EXPERTS or not args.policy:
        sys.exit(f"error: {', '.join(EXPERTS)} need --policy (docs/data.md), and only they take it")
    try:
        from tools import collect_d4rl
    except ImportError as error:
        sys.exit(f"error: {error} (docs/data.md: D4RL)")
    if args.report:
        for noise, title in ((0, "mean actions"), (1, "sampled actions")):
            episodes = play_all(args, collect_d4rl.recipe(args, noise))
            print(f"{title}: {collect_d4rl.summary(args.env_id, episodes)}")
    elif episodes := collect(args, collect_d4rl.recipe(args)):
        print(collect_d4rl.summary(args.env_id, episodes))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("\nstopped; nothing was saved", file=sys.stderr)
        sys.exit(130)

"""Plays OGBench's scripted oracles, by the generation settings that OGBench published.

The command is tools/collect.py. `play`: OGBench's generate_manipspace.py; `navigate`: its
generate_locomaze.py. Both are taken at the settings of its published generation commands.
"""

import tempfile
from functools import partial
from importlib.metadata import version
from unittest import mock

import gymnasium
import numpy as np
import ogbench
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

CACHE = ogbench.utils.DEFAULT_DATASET_DIR
P_STACK = {  # range of the probability that a cube's target is on another cube
    "cube-single": (0, 0),
    "cube-double": (0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


def plan(args):
    """The files' names and numbers of episodes, what plays an episode, and the data's source."""
    count = args.episodes or 100
    dataset = f"{args.env_id}-{'navigate' if 'maze' in args.env_id else 'play'}-v0"
    source = (
        f"collected locally: {count} episodes, seed {args.seed}, "
        f"ogbench {version('ogbench')}, mujoco {version('mujoco')}"
    )
    counts = {f"{dataset}.npz": count, f"{dataset}-val.npz": max(1, count // 10)}
    return counts, partial(play_episode, args.env_id), source


def make_env(family):
    """The family's data-collection environment: no task, no end but the time limit."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # of Box's precision
    kwargs = {} if "maze" in family else {"mode": "data_collection"}
    kwargs["max_episode_steps"] = 2001 if family == "pointmaze-giant" else 1001
    # a maze leaves its XML file behind
    with tempfile.TemporaryDirectory() as folder, mock.patch("tempfile.tempdir", folder):
        return gymnasium.make(f"{family}-v0", terminate_at_goal=False, **kwargs)


def play_episode(family, env, seed):
    """One episode: a dict of lists of T steps, among them the state before each action."""
    np.random.seed(seed)  # the oracles and mazes draw from NumPy's global generator
    env.action_space.seed(seed)
    return (navigate if "maze" in family else play)(family, env, seed)


def record(steps, observation, action, done, info):
    step = {"observations": observation, "actions": action, "terminals": done}
    for key in ("qpos", "qvel", "button_states"):
        if f"prev_{key}" in info:
            step[key] = info[f"prev_{key}"]
    for key, value in step.items():
        steps.setdefault(key, []).append(value)


def play(family, env, seed):
    """An episode of plan oracles that reach one random target after another."""
    noise = {"noise": 0.1, "noise_smoothing": 0.5}
    if family.startswith("puzzle"):
        oracles = {"button": ButtonPlanOracle(env=env, gripper_always_closed=True, **noise)}
    else:
        kinds = {"cube": CubePlanOracle}
        if family == "scene":
            kinds["button"] = ButtonPlanOracle
            kinds["drawer"] = DrawerPlanOracle
            kinds["window"] = WindowPlanOracle
        oracles = {target: kind(env=env, **noise) for target, kind in kinds.items()}

    observation, info = env.reset(seed=seed)
    while True:  # a scene episode that loses its cube is drawn again
        steps = {}
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
    """Whether the cube stayed in view or in the drawer. qpos: (T, nq), the cube's xyz at 14:17."""
    y, z = qpos[:, 15], qpos[:, 16]
    too_far_right = y >= 0.29
    left_outside_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not (too_far_right | left_outside_drawer).any()


def free_and_goal_cells(maze):
    """The free cells of a maze map, and those of them that are not a straight corridor."""
    free = [tuple(cell) for cell in np.argwhere(maze == 0).tolist()]
    goals = []
    for i, j in free:
        vertical = (maze[i - 1, j], maze[i + 1, j])
        horizontal = (maze[i, j - 1], maze[i, j + 1])
        if (vertical, horizontal) not in (((0, 0), (1, 1)), ((1, 1), (0, 0))):
            goals.append((i, j))
    return free, goals


def navigate(family, env, seed):
    """An episode of walking to one random goal after another, with noise."""
    maze = env.unwrapped
    free, goals = free_and_goal_cells(maze.maze_map)
    start = free[np.random.randint(len(free))]
    goal = goals[np.random.randint(len(goals))]
    task = {"init_ij": start, "goal_ij": goal}
    observation, _ = env.reset(seed=seed, options={"task_info": task})
    steps = {}
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


def write(file, arrays, source):
    np.savez_compressed(file, **arrays, source=np.array(source))


def read_source(path):
    """Where a dataset file says that it came from."""
    with np.load(path) as file:
        return str(file["source"]) if "source" in file else "official or unknown"

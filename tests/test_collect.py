"""Tests of tools/collect.py on OGBench's families: what is played, what is written, refusals."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import ogbench
import pytest

from tools import collect, collect_ogbench

MAZE, CUBE, SCENE, PUZZLE = "pointmaze-medium", "cube-single", "scene", "puzzle-3x3"
FILE = "pointmaze-medium-navigate-v0.npz"
LENGTH = 300  # of the episodes that are looked at; they are of 1001 steps else


def families(*names):
    """Parameters, of which those with a robot arm take long."""
    return [pytest.param(x, marks=[pytest.mark.slow] if x != MAZE else []) for x in names]


every_family = pytest.mark.parametrize("family", families(MAZE, CUBE, SCENE, PUZZLE))


def shorter(env, length):
    layer = env
    while not isinstance(layer, gymnasium.wrappers.TimeLimit):
        layer = layer.env
    layer._max_episode_steps = length
    return env


def play_one(family, seed, index):
    return collect.play_one(partial(collect_ogbench.play_episode, family), seed, index)


@pytest.fixture
def episodes(shared, monkeypatch):
    """episodes(family) is two episodes of LENGTH steps, made once, as dicts of arrays."""

    def read(family):
        def make(folder):
            env = shorter(collect_ogbench.make_env(family), LENGTH)
            monkeypatch.setattr(collect, "worker_env", env, raising=False)
            for i in range(2):
                np.savez(folder / f"{i}.npz", **play_one(family, 3, i))

        folder = shared(f"episodes-{family}", make)
        return [dict(np.load(folder / f"{i}.npz")) for i in range(2)]

    return read


@pytest.fixture
def in_this_process(monkeypatch):
    """Collecting plays in this process, one env for all, instead of in a pool of its own."""
    env = shorter(collect_ogbench.make_env(MAZE), 20)

    def play(args, make_env, play_episode, count):
        monkeypatch.setattr(collect, "worker_env", env, raising=False)
        return [collect.play_one(play_episode, args.seed, i) for i in range(count)]

    monkeypatch.setattr(collect, "play", play)


def flags(folder, *more, family=MAZE):
    return ["--env-id", family, "--episodes", "1", "--jobs", "1", "--data-dir", str(folder), *more]


def refusal(*args):
    with pytest.raises(SystemExit) as exit:
        collect.main(list(map(str, args)))
    message = str(exit.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


# -------------------------------------------------------------------------------- the simulator


def put(env, episode, t):
    """Puts the environment in the state of step t. Returns its observation there."""
    names = [name for name in ("qpos", "qvel", "button_states") if name in episode]
    state = [episode[name][t] for name in names]
    env.set_state(*(x if x.dtype == np.int64 else x.astype(float) for x in state))
    return env.get_ob() if hasattr(env, "get_ob") else env.compute_observation()


@every_family
def test_state_observation_and_action_are_of_the_same_step(episodes, family):
    """In the simulator: a step's state gives its observation, its action leads to the next one."""
    (episode, _), env = episodes(family), collect_ogbench.make_env(family).unwrapped
    env.reset(seed=0)
    contact = [] if family == MAZE else [18]  # the gripper's force is of the step before
    of_step, of_next, led, misled = [], [], [], []
    for t in range(0, LENGTH - 10, 10):
        observation = np.delete(put(env, episode, t), contact)
        of_step.append(abs(observation - np.delete(episode["observations"][t], contact)).max())
        of_next.append(abs(observation - np.delete(episode["observations"][t + 1], contact)).max())
        for errors, action in ((led, t), (misled, t + 1)):
            put(env, episode, t)
            env.step(episode["actions"][action].astype(float))
            errors.append(abs(env.data.qpos - episode["qpos"][t + 1]).max())
    # OGBench's cubes take the gripper's place from a fiftieth of a step before, scaled by 10
    assert max(of_step) < (0.02 if family == CUBE else 1e-5)
    assert np.median(of_next) > 0.05
    assert np.median(led) < 2e-3 and np.median(led) < np.median(misled) / 8


@every_family
def test_episodes_differ_and_end_at_the_time_limit(episodes, family):
    one, two = episodes(family)
    for episode in (one, two):
        assert episode["terminals"].tolist() == [False] * (LENGTH - 1) + [True]
        assert {len(value) for value in episode.values()} == {LENGTH}
        assert abs(episode["actions"]).max() <= 1
    assert abs(one["observations"][0] - two["observations"][0]).max() > 0.01
    assert (one["actions"] != two["actions"]).any(1).mean() > 0.99


# --------------------------------------------------------------------------------- the recipe


@pytest.mark.parametrize("family", families(CUBE, SCENE, PUZZLE))
def test_noise_of_play_is_the_recipes(episodes, family):
    """Plans have noise of 0.1, smoothed over 0.5 steps: seen in the gripper, whose plan is flat.

    A Gaussian filter of width 0.5 has the weights 0.106, 0.787, 0.106. White noise of deviation
    0.1 has 0.080 after it, and a correlation of 0.26 from step to step; its second differences
    have 0.159 and -0.55."""
    joint = collect_ogbench.make_env(family)
    joint.reset(seed=0)
    joint = joint.unwrapped._gripper_opening_joint_id
    deviations, correlations, levels = [], [], []
    for episode in episodes(family):
        opening = np.clip(episode["qpos"][:, joint] / 0.8, 0, 1)
        plan = opening + episode["actions"][:, 4]  # an action is the way to the plan
        bends = np.diff(plan, 2)
        deviations.append(1.4826 * np.median(abs(bends)))
        correlations.append(np.corrcoef(bends[:-1], bends[1:])[0, 1])
        levels.append(plan)
    assert np.mean(deviations) == pytest.approx(0.159, rel=0.15)
    assert np.mean(correlations) == pytest.approx(-0.55, abs=0.06)
    if family == PUZZLE:  # its gripper is always closed
        plan = np.concatenate(levels)
        assert plan.mean() == pytest.approx(1, abs=0.02)
        assert plan.std() == pytest.approx(0.080, rel=0.1)
        assert np.corrcoef(plan[:-1], plan[1:])[0, 1] == pytest.approx(0.26, abs=0.1)
    else:
        assert (np.concatenate(levels) < 0.3).any() and (np.concatenate(levels) > 0.7).any()


@pytest.mark.slow
def test_puzzles_and_scenes_go_from_target_to_target(episodes):
    for family in (PUZZLE, SCENE):
        changed = [np.diff(episode["qpos"][:, 14:], axis=0) for episode in episodes(family)]
        moved = abs(np.concatenate(changed)).max(0) > 0.001
        assert moved.sum() >= 2  # buttons, cubes, drawers and windows


class Noting(gymnasium.Wrapper):
    """Notes where a maze's walker and goal were at each action."""

    def __init__(self, env):
        super().__init__(env)
        self.noted = []

    def step(self, action):
        maze = self.unwrapped
        self.noted.append((maze.get_xy().copy(), np.array(maze.cur_goal_xy), action))
        return self.env.step(action)


def test_noise_and_goals_of_navigate_are_the_recipes():
    """A step goes to the next cell on the way, with noise of 0.5; a goal that is reached is drawn
    anew."""
    np.random.seed(0)
    env = Noting(collect_ogbench.make_env(MAZE))
    steps = collect_ogbench.navigate(MAZE, env, 0)
    maze, noise, sideways = env.unwrapped, [], []
    for xy, goal, action in env.noted:
        way = maze.get_oracle_subgoal(xy, goal)[0] - xy
        way = way / (np.linalg.norm(way) + 1e-6)
        noise.append(action - way)
        sideways.append(abs(way) < 0.3)
    noise, actions = np.array(noise), np.array(steps["actions"])
    assert np.array_equal(actions, [action for _, _, action in env.noted])
    across = abs(noise[np.array(sideways)])  # where clipping to [-1, 1] changes little
    assert len(across) > 300
    # half of a normal distribution lies within 0.674 deviations, eight tenths within 1.282
    assert np.quantile(across, [0.5, 0.8]) == pytest.approx([0.337, 0.641], rel=0.12)
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.25  # and not smoothed
    goals = np.array([goal for _, goal, _ in env.noted])
    redrawn = np.flatnonzero(abs(np.diff(goals, axis=0)).max(1) > 0) + 1
    assert len(redrawn) >= 3
    for t in redrawn:  # it had come to the goal before
        assert np.linalg.norm(env.noted[t][0] - goals[t - 1]) < 1.5


class FakeMaze:
    """A maze in which every third step reaches the goal."""

    maze_map = np.array(
        [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]
    )
    cur_goal_xy = np.zeros(2)

    def __init__(self):
        self.unwrapped, self.starts, self.goals, self.t = self, [], [], 0

    def reset(self, *, seed, options):
        self.starts.append(options["task_info"]["init_ij"])
        self.goals.append(options["task_info"]["goal_ij"])
        self.t = 0
        return np.zeros(2), {}

    def set_goal(self, cell):
        self.goals.append(cell)

    def get_xy(self):
        return np.zeros(2)

    def get_oracle_subgoal(self, xy, goal):
        return np.array([0.0, 4.0]), None

    def step(self, action):
        self.t += 1
        info = {"success": self.t % 3 == 0, "prev_qpos": np.full(2, self.t)}
        return np.full(2, self.t), 0.0, False, self.t == 7, info


def test_starts_are_free_cells_and_goals_are_not_in_a_corridor():
    np.random.seed(0)
    env = FakeMaze()
    played = [collect_ogbench.navigate(MAZE, env, 0) for _ in range(200)]
    assert len(env.goals) == 200 * (1 + 2)  # at the start, and where one was reached
    free, corners = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)], [(1, 1), (1, 3), (3, 3)]
    for drawn, cells in ((env.starts, free), (env.goals, corners)):
        counts = [drawn.count(cell) for cell in cells]
        assert sum(counts) == len(drawn)
        assert min(counts) > 0.7 * len(drawn) / len(cells)  # drawn uniformly
    assert collect_ogbench.free_and_goal_cells(env.maze_map) == (free, corners)
    actions = np.concatenate([episode["actions"] for episode in played])
    x, y = actions.T  # the way is (0, 1)
    assert np.quantile(abs(x), [0.5, 0.8]) == pytest.approx([0.337, 0.641], rel=0.08)
    assert (y == 1).mean() == pytest.approx(0.5, abs=0.05) and y.min() < 0.2
    for episode in played:  # the state before the action, with the observation of it
        assert [x[0] for x in episode["observations"]] == [0, 1, 2, 3, 4, 5, 6]
        assert [x[0] for x in episode["qpos"]] == [1, 2, 3, 4, 5, 6, 7]


class FakeArm:
    """An environment of plan oracles in which the target goes around."""

    def __init__(self, targets):
        self.unwrapped, self.targets, self.stacking = self, targets, []

    def info(self):
        target = self.targets[len(self.stacking) % len(self.targets)]
        return {"privileged/target_task": target, "prev_qpos": np.full(17, self.t / 100)}

    def reset(self, seed=None):
        self.t = 0
        return np.zeros(1), self.info()

    def set_new_target(self, p_stack):
        self.stacking.append(p_stack)
        return np.full(1, self.t), self.info()

    def step(self, action):
        self.t += 1
        return np.full(1, self.t), 0.0, False, self.t == 6, self.info()


@pytest.fixture
def oracles(monkeypatch):
    """Takes the place of OGBench's oracles, which are then done at every second step."""
    made = []

    class Oracle:
        def __init__(self, env, **settings):
            self.name, self.settings, self.plans = type(self).__name__, settings, 0
            made.append(self)

        def reset(self, observation, info):
            self.plans, self.steps, self.done = self.plans + 1, 0, False

        def select_action(self, observation, info):
            self.steps += 1
            self.done = self.steps == 2
            return np.array([3.0, -3.0, 0.1, 0.2, observation[0] / 10])

    for target in ("button", "cube", "drawer", "window"):
        oracle = type(target, (Oracle,), {})
        monkeypatch.setattr(collect_ogbench, f"{target.capitalize()}PlanOracle", oracle)
    return made


@pytest.mark.parametrize("family, targets, stacking", [
    ("cube-single", ["cube"], (0, 0)), ("cube-double", ["cube"], (0, 0.25)),
    ("cube-triple", ["cube"], (0.05, 0.35)), ("cube-quadruple", ["cube"], (0.1, 0.5)),
    ("scene", ["cube", "button", "drawer", "window"], (0.5, 0.5)),
    ("puzzle-4x4", ["button"], (0.5, 0.5)),
])  # fmt: skip
def test_play_follows_ogbenchs_generation_settings(oracles, family, targets, stacking):
    np.random.seed(0)
    probabilities = []
    for _ in range(100):
        env = FakeArm(targets)
        oracles.clear()
        steps = collect_ogbench.play(family, env, 0)
        assert sorted(oracle.name for oracle in oracles) == sorted(targets)
        closed = {"gripper_always_closed": True} if "puzzle" in family else {}
        for oracle in oracles:
            assert oracle.settings == {"noise": 0.1, "noise_smoothing": 0.5, **closed}
        assert sum(oracle.plans for oracle in oracles) == 1 + 3  # a new one when one is done
        assert len(env.stacking) == 3 and len(set(env.stacking)) == 1  # one draw per episode
        probabilities.append(env.stacking[0])
        assert np.array(steps["actions"]).tolist() == [
            [1, -1, 0.1, 0.2, pytest.approx(t / 10)] for t in range(6)
        ]
        assert [x[0] for x in steps["observations"]] == [0, 1, 2, 3, 4, 5]
        assert steps["terminals"] == [False] * 5 + [True]
    low, high = stacking
    assert low <= min(probabilities) and max(probabilities) <= high
    width = high - low
    assert np.mean(probabilities) == pytest.approx((low + high) / 2, abs=0.1 * width)
    assert np.ptp(probabilities) >= 0.9 * width


def test_a_scene_that_lost_its_cube_is_drawn_again(oracles, monkeypatch):
    answers, seen = [False, False, True], []
    monkeypatch.setattr(
        collect_ogbench,
        "scene_is_healthy",
        lambda qpos: seen.append(qpos) or answers[len(seen) - 1],
    )
    steps = collect_ogbench.play("scene", FakeArm(["cube"]), 0)
    assert len(seen) == 3 and len(steps["actions"]) == 6


def test_where_a_scenes_cube_may_lie():
    qpos = np.zeros((3, 20))
    qpos[:, 16] = 0.02
    assert collect_ogbench.scene_is_healthy(qpos)
    for y, z, healthy in (
        (0.29, 0.02, False), (0.28, 0.02, True), (-0.29, 0.02, True),
        (-0.3, 0.02, False), (-0.3, 0.07, True), (-0.3, 0.09, False),
    ):  # fmt: skip
        qpos[1, 15:17] = y, z
        assert collect_ogbench.scene_is_healthy(qpos) == healthy


@pytest.mark.parametrize("family, length", [(MAZE, 1001), ("pointmaze-giant", 2001)])
def test_lengths_are_the_official_ones(family, length):
    env = collect_ogbench.make_env(family)
    assert env.spec.max_episode_steps == length
    env.reset(seed=0)
    maze = env.unwrapped
    maze.set_xy(np.array(maze.cur_goal_xy))
    assert env.step(np.zeros(2))[2] is False  # no end at the goal


# ------------------------------------------------------------------------------------ the files


def test_the_files_are_official_in_format(data_dir):
    data, validation = (np.load(data_dir / FILE.replace(".npz", x)) for x in (".npz", "-val.npz"))
    shapes = {"observations": (2002, 2), "actions": (2002, 2), "terminals": (2002,),
              "qpos": (2002, 2), "qvel": (2002, 2)}  # fmt: skip
    assert {key: data[key].shape for key in shapes} == shapes
    assert set(data.files) == {*shapes, "source"}
    for key in shapes:
        assert data[key].dtype == (bool if key == "terminals" else np.float32)
    assert np.flatnonzero(data["terminals"]).tolist() == [1000, 2001]
    assert np.flatnonzero(validation["terminals"]).tolist() == [1000]
    assert str(data["source"]).startswith("collected locally: 2 episodes, seed 0, ogbench 1.2")


def test_the_files_hold_the_episodes_in_order(data_dir, monkeypatch):
    """The file was made in a process of its own; here they are played once more."""
    monkeypatch.setattr(collect, "worker_env", collect_ogbench.make_env(MAZE), raising=False)
    data, validation = (np.load(data_dir / FILE.replace(".npz", x)) for x in (".npz", "-val.npz"))
    for i, part in ((2, validation), (0, data)):  # whatever was played before
        episode = play_one(MAZE, 0, i)
        for key, value in episode.items():
            assert np.array_equal(value, part[key][:1001]), key
    assert abs(data["qpos"][0] - data["qpos"][1001]).max() > 0.01


@pytest.mark.slow
def test_the_number_of_jobs_changes_no_byte(data_dir, tmp_path):
    args = ["--env-id", MAZE, "--episodes", "2", "--jobs", "2", "--data-dir", str(tmp_path)]
    collect.main(args)
    for path in data_dir.glob("*.npz"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_ogbench_reads_a_cubes_file(cube_dir):
    data = np.load(cube_dir / "cube-single-play-v0.npz")
    assert data["observations"].shape == (2002, 28) and data["actions"].shape == (2002, 5)
    name = "cube-single-play-singletask-v0"
    _, train, validation = ogbench.make_env_and_datasets(name, str(cube_dir))
    assert (len(train["rewards"]), len(validation["rewards"])) == (2000, 1000)
    assert set(np.unique(train["rewards"])) <= {-1.0, 0.0}


def test_another_seed_gives_other_episodes(in_this_process, tmp_path):
    first, second = tmp_path / "0" / FILE, tmp_path / "1" / FILE
    for path in (first, second):
        collect.main(flags(path.parent, "--seed", path.parent.name))
    a, b = np.load(first), np.load(second)
    assert (a["actions"] != b["actions"]).any(1).mean() > 0.7  # some lie at the limit of 1
    assert "seed 1" in str(b["source"])


def test_one_tenth_more_is_for_validation(in_this_process, tmp_path):
    for count, validation in ((1, 1), (19, 1), (20, 2)):
        collect.main([*flags(tmp_path / str(count)), "--episodes", str(count)])
        files = [tmp_path / str(count) / FILE.replace(".npz", x) for x in (".npz", "-val.npz")]
        assert [np.load(path)["terminals"].sum() for path in files] == [count, validation]


def test_collecting_again_keeps_what_is_there(in_this_process, tmp_path, capsys):
    collect.main(flags(tmp_path))
    before = (tmp_path / FILE).stat().st_mtime_ns
    collect.main(flags(tmp_path))
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    assert "already holds other data" in refusal(*flags(tmp_path, "--seed", "1"))
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / FILE).unlink()  # as a call that was cut off between the two files leaves it
    collect.main(flags(tmp_path))
    assert (tmp_path / FILE).exists()


@pytest.mark.parametrize("damage, word", [(False, "official or unknown"), (True, "is damaged")])
def test_other_data_is_never_replaced(in_this_process, tmp_path, damage, word):
    """Not even where only one of the two files is there."""
    path = tmp_path / FILE
    np.savez(path, observations=np.zeros((3, 2)))
    if damage:
        path.write_bytes(path.read_bytes()[:50])
    before = path.read_bytes()
    assert word in refusal(*flags(tmp_path))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full(in_this_process, monkeypatch, tmp_path):
    """full(folders) fills the disks of folders. Temporary files go to tmp_path / "temporary"."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    write_bytes = Path.write_bytes

    def fill(*folders):
        def write(path, content):
            write_bytes(path, bytes(content)[: len(content) // 2])
            if set(folders) & set(path.parents):
                raise OSError(errno.ENOSPC, "No space left on device")
            write_bytes(path, content)

        monkeypatch.setattr(Path, "write_bytes", write)

    return fill


def test_on_a_full_disk_another_folder_is_asked_for(full, monkeypatch, tmp_path, capsys):
    first, other, last = (tmp_path / name for name in ("first", "other", "last"))
    other.mkdir()
    np.savez(other / FILE, observations=np.zeros((3, 2)))
    before = (other / FILE).read_bytes()
    full(first)
    answers = iter([first, "", other, ogbench.utils.DEFAULT_DATASET_DIR, last])  # "": once more
    monkeypatch.setattr(os, "isatty", lambda file: True)
    monkeypatch.setattr("builtins.input", lambda prompt: str(next(answers)))
    collect.main(flags(first))
    out, told = capsys.readouterr()
    assert told.count("No space left") == 3
    assert "holds other data" in told and "is for official data" in told
    assert f"{last / FILE}: 1 episodes" in out
    assert not list(first.iterdir())
    assert [path.name for path in other.iterdir()] == [FILE]
    assert (other / FILE).read_bytes() == before
    collect.main(flags(tmp_path / "whole"))
    for path in (tmp_path / "whole").iterdir():
        assert (last / path.name).read_bytes() == path.read_bytes()


def test_on_a_full_disk_giving_up_leaves_no_file(full, monkeypatch, tmp_path):
    def give_up(prompt):
        raise KeyboardInterrupt

    full(tmp_path)
    monkeypatch.setattr(os, "isatty", lambda file: True)
    monkeypatch.setattr("builtins.input", give_up)
    with pytest.raises(KeyboardInterrupt):
        collect.main(flags(tmp_path / "data"))
    assert not list((tmp_path / "data").iterdir())


def test_on_a_full_disk_without_a_terminal_the_temporary_folder_takes_all(
    full, monkeypatch, tmp_path
):
    data, temporary = tmp_path / "data", tmp_path / "temporary"
    monkeypatch.setattr(os, "isatty", lambda file: False)
    full(data)
    message = refusal(*flags(data))
    (folder,) = temporary.iterdir()
    assert str(folder) in message and str(data) in message
    assert np.load(folder / FILE)["observations"].shape == (20, 2)
    assert len(list(folder.iterdir())) == 2 and not list(data.iterdir())
    full(data, temporary)
    assert "lost" in refusal(*flags(data))
    assert not list(data.iterdir())


@pytest.mark.parametrize("args, words", [
    (["--env-id", CUBE, "--report"], "--report"),
    (["--env-id", CUBE, "--policy", "a"], "--policy"),
    (["--env-id", "door-expert-v1"], "door-v0.pickle"),
    (["--env-id", CUBE, "--data-dir", ogbench.utils.DEFAULT_DATASET_DIR], "official"),
    (["--env-id", CUBE, "--data-dir", f"{__file__}/data"], "cannot be used"),
])  # fmt: skip
def test_mistakes_are_refused(args, words):
    assert words in refusal(*args)


def test_a_folder_that_may_not_be_looked_into_is_refused(monkeypatch, tmp_path):
    def deny(path):
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "exists", deny)
    assert "cannot be used (not yours)" in refusal(*flags(tmp_path))


@pytest.mark.parametrize("flag, value, told", [
    ("--env-id", "antmaze-large", "pointmaze-medium"), ("--episodes", 0, "greater than 0"),
    ("--jobs", 0, "greater than 0"), ("--seed", -1, "greater than or equal to 0"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused(flag, value, told, capsys):
    with pytest.raises(SystemExit) as exit:
        collect.main(["--env-id", CUBE, flag, str(value)])
    assert exit.value.code == 2 and told in capsys.readouterr().err


# ----------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("number, begun, code", [
    (signal.SIGKILL, " 1/", -signal.SIGKILL),
    (signal.SIGTERM, " 0/", 130), (signal.SIGINT, " 0/", 130),  # while the workers start
])  # fmt: skip
def test_workers_end_with_their_parent(tmp_path, number, begun, code):
    """And they play whatever MUJOCO_GL asks for, as nothing is drawn."""
    args = ["--env-id", MAZE, "--episodes", "1000", "--jobs", "2", "--data-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, collect.__file__, *args],
        env=os.environ | {"MUJOCO_GL": "no such renderer"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored here
    )
    try:
        told = ""
        while begun not in told:
            told += (read := process.stderr.read(1))
            assert read, told
        # Ctrl-C goes to the workers too
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, told = process.communicate(timeout=30)  # the workers hold stderr as well
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code and "Traceback" not in told
    assert number == signal.SIGKILL or told.endswith("\nstopped; nothing was saved\n")
    assert not list(tmp_path.iterdir())


def test_help_where_nobody_has_a_home_and_one_core_is_given(tmp_path):
    code = f"""if True:
        import os, pwd, runpy, sys
        def unknown(user): raise KeyError(user)
        pwd.getpwuid = unknown
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        sys.argv = ["collect.py", "--help"]
        runpy.run_path({collect.__file__!r}, run_name="__main__")"""
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    result = subprocess.run([sys.executable, "-c", code], **options)
    assert (result.returncode, result.stderr) == (0, "")
    assert "processes (default: 1)" in result.stdout


def test_a_maze_leaves_no_file_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    collect_ogbench.make_env(MAZE).reset(seed=0)
    assert not list(tmp_path.iterdir())

"""D4RL's AntMaze and Adroit tasks on today's MuJoCo bindings, with gymnasium's interface.

    from d4rl_compat import D4RLEnv, make_env_and_datasets
    env = D4RLEnv("antmaze-large-play-v2")
    env, data, _ = make_env_and_datasets("pen-human-v1")

d4rl's own environment classes run unmodified. They import mujoco_py, and Adroit's import mjrl too:
the stand-ins below, built on the mujoco package, take their places before d4rl is imported. The
packages are those of requirements-d4rl.txt. The functions at the end are named as ogbench's.
"""

import contextlib
import http.client
import io
import os
import re
import sys
import tempfile
import urllib.request
import warnings
from collections import namedtuple
from pathlib import Path
from types import ModuleType
from unittest import mock

import gymnasium
import mujoco
import numpy as np

TASKS = (
    "antmaze-(umaze|umaze-diverse|(medium|large)-(play|diverse))-v[012]"
    "|(pen|door|hammer|relocate)-(human|cloned|expert)-v[01]"
)

# -------------------- mujoco_py and mjrl, as far as d4rl needs them
MjSimState = namedtuple("MjSimState", "time qpos qvel act udd_state")


class Model:
    """mujoco_py's PyMjModel: a mujoco.MjModel with look-ups such as body_name2id(name)."""

    def __init__(self, model):
        self.mujoco_model = model

    def __getattr__(self, name):
        kind, look_up, _ = name.partition("_name2id")
        if look_up:
            return lambda name: getattr(self.mujoco_model, kind)(name).id
        return getattr(self.mujoco_model, name)


class Data:
    """mujoco_py's PyMjData: a mujoco.MjData with the old names of a body's pose."""

    def __init__(self, data):
        self.mujoco_data = data
        self.body_xpos, self.body_xquat = data.xpos, data.xquat  # views: (bodies, 3), (bodies, 4)

    def __getattr__(self, name):
        return getattr(self.mujoco_data, name)

    def get_body_xpos(self, name):
        return self.mujoco_data.body(name).xpos


class MjSim:
    """mujoco_py's MjSim: a model, its state and the simulation."""

    def __init__(self, model):
        self.model, self.mujoco_model = model, model.mujoco_model
        self.mujoco_data = mujoco.MjData(self.mujoco_model)
        self.data = Data(self.mujoco_data)
        self.forward()

    def reset(self):
        mujoco.mj_resetData(self.mujoco_model, self.mujoco_data)

    def forward(self):
        # MuJoCo 2.1's forward pass did this itself; D4RL's ant is reset to a quaternion with noise
        mujoco.mj_normalizeQuat(self.mujoco_model, self.mujoco_data.qpos)
        mujoco.mj_forward(self.mujoco_model, self.mujoco_data)

    def step(self):
        mujoco.mj_step(self.mujoco_model, self.mujoco_data)

    def get_state(self):
        data = self.mujoco_data
        return MjSimState(data.time, data.qpos.copy(), data.qvel.copy(), data.act.copy(), {})

    def set_state(self, state):
        data = self.mujoco_data
        data.time = state.time
        data.qpos[:] = state.qpos
        data.qvel[:] = state.qvel
        data.act[:] = state.act


def load_model_from_path(path):
    # a file that Adroit's tasks include has an attribute of viewers that newer MuJoCo refuses
    included, assets = Path(path).with_name("DAPG_assets.xml"), {}
    if included.exists():
        assets[included.name] = included.read_bytes().replace(b'apirate="200"', b"")
    return Model(mujoco.MjModel.from_xml_path(path, assets))


def put_stand_ins():
    """In the place of mujoco_py and mjrl, of which Adroit takes what gym's own MujocoEnv does."""
    module = ModuleType("mujoco_py")
    module.get_version = lambda: "2.1"  # d4rl asks, and takes sim.data from 1.50 on
    module.load_model_from_path = load_model_from_path
    module.MjSim, module.MjSimState, module.MjViewer = MjSim, MjSimState, None
    sys.modules["mujoco_py"] = module
    from gym.envs.mujoco import mujoco_env

    sys.modules["mjrl.envs"] = ModuleType("mjrl.envs")
    sys.modules["mjrl.envs.mujoco_env"] = mujoco_env


os.environ["D4RL_SUPPRESS_IMPORT_ERROR"] = "1"  # of environments that are not used here
with (
    contextlib.redirect_stderr(io.StringIO()),  # gym prints that it is unmaintained
    warnings.catch_warnings(),
    mock.patch.dict(os.environ, D4RL_DATASET_DIR=tempfile.gettempdir()),  # else d4rl makes one
):
    warnings.simplefilter("ignore")
    try:
        import gym
        import h5py

        gym.logger.set_level(gym.logger.ERROR)  # it warns of what d4rl still uses
        put_stand_ins()
        import d4rl.hand_manipulation_suite
        import d4rl.locomotion  # noqa: F401
    except Exception as error:  # what packages of other versions make of each other
        raise ImportError(
            f"D4RL's tasks need more packages ({error}): "
            "pip install --no-deps -r requirements-d4rl.txt"
        ) from error


# -------------------- gymnasium's interface
class D4RLEnv(gymnasium.Env):
    """One of D4RL's tasks, such as pen-human-v1. Raises ValueError where there is none of the name.

    Observations (O,) are float64, actions (A,) in [-1, 1]. An episode depends on its seed alone. A
    step's info has normalized_score, of the return so far: random 0, expert 1. The time limit
    truncates (antmaze: 700 steps in umaze, else 1000; pen 100, other hands 200); a reached goal
    (antmaze) and a dropped pen terminate. dataset_file: the name of the task's dataset."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, name):
        if not re.fullmatch(TASKS, name):
            raise ValueError(f"{name} is no AntMaze or Adroit task of D4RL, such as pen-human-v1")
        with (
            tempfile.TemporaryDirectory() as folder,  # a maze leaves its XML file behind
            mock.patch("tempfile.tempdir", folder),
            contextlib.redirect_stdout(None),  # it prints its goal
        ):
            self.env = gym.make(name)
        self.name = name
        raw = self.env.unwrapped
        self.inner = getattr(raw, "wrapped_env", raw)  # AntMaze is in a ProxyEnv
        shape = self.env.observation_space.shape
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self.env.action_space.shape, np.float32)
        self.get_normalized_score = self.inner.get_normalized_score
        self.model = self.inner.sim.model
        self.dataset_file = Path(self.inner.dataset_url).name
        self.renderer = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total = 0.0
        with contextlib.redirect_stdout(None):
            if seed is not None:
                self.inner.seed(seed)
                np.random.seed(seed)  # AntMaze draws its goal from NumPy's global generator
                if not getattr(self.inner, "v2_resets", True):
                    self.inner.set_target()  # antmaze's v0 and v1, on their own, never draw another
            return self.env.reset(), {}

    def step(self, action):
        observation, reward, done, info = self.env.step(action)
        # only at the limit, and False where it was done as well
        truncated = info.pop("TimeLimit.truncated", False)
        self.total += float(reward)
        info["normalized_score"] = self.get_normalized_score(self.total)
        return observation, float(reward), bool(done and not truncated), truncated, info

    def render(self):
        """An image (480, 480, 3) of the free camera."""
        if self.renderer is None:
            self.renderer = mujoco.Renderer(self.model.mujoco_model, 480, 480)
        self.renderer.update_scene(self.inner.sim.mujoco_data)
        return self.renderer.render()


# -------------------- what ogbench has under the same names
def make_env_and_datasets(name, dataset_dir=None, env_only=False):
    """A task's environment, its data (see load_dataset) and None, as there is no validation data;
    with env_only the environment alone.

    The data is downloaded if missing, into dataset_dir, else default_dataset_dir(). Raises OSError
    where that fails, ValueError where the name is no task's or a file is not the task's."""
    env = D4RLEnv(name)
    if env_only:
        return env
    return env, load_dataset(download(env, dataset_dir), env), None


def download_datasets(names, dataset_dir=None):
    """Downloads the datasets of tasks that are not there. Raises OSError, ValueError."""
    for name in names:
        download(D4RLEnv(name), dataset_dir)


def default_dataset_dir():
    """The folder of D4RL's data, in which ~ may stand for the home."""
    return os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets"


def download(env, dataset_dir=None):
    """Downloads a task's dataset if it is missing. Returns its path. Raises OSError."""
    folder = Path(os.path.expanduser(dataset_dir or default_dataset_dir()))
    if str(folder).startswith("~"):
        raise OSError(f"there is no home folder for {folder}: name another folder for the data")
    path = folder / env.dataset_file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"downloading {env.inner.dataset_url} to {path}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            partial = Path(aside, path.name)
            try:
                urllib.request.urlretrieve(env.inner.dataset_url, partial)
            except http.client.HTTPException as error:
                raise OSError(f"the server's answer was cut off: {error!r}") from error
            os.replace(partial, path)  # whole or not there
    return path


def read_arrays(path, env):
    """A file's observations (N, O), actions (N, A), rewards, terminals and timeouts (N,), whatever
    type of number they are, as finite float32. Raises ValueError where they are not that."""
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    try:
        with h5py.File(path) as file, np.errstate(over="ignore"):  # infinity is refused below
            arrays = [file[key][()].astype(np.float32, casting="same_kind") for key in keys]
    except Exception as error:  # whatever a damaged file makes h5py raise
        raise ValueError(f"{path} is damaged or not D4RL's: {error}") from error
    n = arrays[2].size
    spaces = [env.observation_space.shape, env.action_space.shape, (), (), ()]
    for i, (key, space) in enumerate(zip(keys, spaces, strict=True)):
        if arrays[i].shape == (n, 1):
            arrays[i] = arrays[i][:, 0]
        if n < 2 or arrays[i].shape != (n, *space):
            raise ValueError(f"{path} is not of {env.name}: {n} rewards, {key} {arrays[i].shape}")
        if not np.isfinite(arrays[i]).all():
            raise ValueError(f"{path} is of no use: its {key} are not finite")
    return arrays


def load_dataset(path, env):
    """The steps that d4rl.qlearning_dataset makes of a file, as float32, named as OGBench's.

    observations, next_observations (N, O); actions (N, A); rewards (N,), in AntMaze -1 per step
    until the goal; masks (N,): 0 at a terminal state. A step at a time limit is left out: what
    follows it is of the next episode. Raises ValueError where the file is not the task's or not of
    finite numbers."""
    observations, actions, rewards, terminals, timeouts = read_arrays(path, env)
    if ((terminals != 0) | (timeouts != 0))[:-1].all():
        raise ValueError(f"{path} has nothing to learn from: every step ends an episode")
    keep = np.flatnonzero(timeouts[:-1] == 0)
    return {
        "observations": observations[keep],
        "actions": actions[keep],
        "next_observations": observations[keep + 1],
        "rewards": rewards[keep] - np.float32("antmaze" in env.name),
        "masks": (terminals[keep] == 0).astype(np.float32),
    }

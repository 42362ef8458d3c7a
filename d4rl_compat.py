"""D4RL's AntMaze and Adroit environments on today's MuJoCo bindings, behind a gymnasium face.

    from d4rl_compat import D4RLEnv
    env = D4RLEnv("antmaze-large-play-v2")

d4rl's own environment classes run unmodified. They import mujoco_py, and Adroit's import mjrl too:
the stand-ins below, built on the mujoco package, take their places before d4rl is imported. The
packages are those of requirements-d4rl.txt. The functions at the end are named as ogbench's.
"""

import contextlib
import http.client
import io
import os
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

# -------------------- mujoco_py, as far as d4rl needs it

MjSimState = namedtuple("MjSimState", "time qpos qvel act udd_state")


class Model:
    """mujoco_py's PyMjModel: a mujoco.MjModel with look-ups like body_name2id(name).

    They raise ValueError."""

    def __init__(self, model):
        self.mujoco_model = model

    def __getattr__(self, name):
        kind, name2id, _ = name.partition("_name2id")
        if not name2id:
            return getattr(self.mujoco_model, name)

        def look_up(name):
            kind_id = getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}")
            index = mujoco.mj_name2id(self.mujoco_model, kind_id, name)
            if index < 0:
                raise ValueError(f"no {kind} is called {name}")
            return index

        return look_up


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
        self.mujoco_model, self.mujoco_data = model.mujoco_model, mujoco.MjData(model.mujoco_model)
        self.model, self.data, self.renderer = model, Data(self.mujoco_data), None
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
        data.time, data.qpos[:], data.qvel[:], data.act[:] = (
            state.time,
            state.qpos,
            state.qvel,
            state.act,
        )

    def render(self, width, height):
        """An image (height, width, 3) of the free camera, upside down as mujoco_py gives it."""
        if self.renderer is None:
            self.renderer = mujoco.Renderer(self.mujoco_model, height, width)
        self.renderer.update_scene(self.mujoco_data)
        return self.renderer.render()[::-1]


def load_model_from_path(path):
    # a file that Adroit's tasks include has an attribute of viewers that newer MuJoCo refuses
    shared = Path(path).with_name("DAPG_assets.xml")
    assets = (
        {shared.name: shared.read_bytes().replace(b'apirate="200"', b"")} if shared.exists() else {}
    )
    return Model(mujoco.MjModel.from_xml_path(path, assets))


def stand_in_for_mujoco_py():
    module = ModuleType("mujoco_py")
    module.get_version = lambda: "2.1"  # d4rl asks, and takes sim.data from 1.50 on
    module.load_model_from_path = load_model_from_path
    module.MjSim, module.MjSimState, module.MjViewer = MjSim, MjSimState, None
    sys.modules["mujoco_py"] = module


def stand_in_for_mjrl():
    """mjrl's environment base class."""
    import gym
    from gym.utils import seeding

    class MujocoEnv(gym.Env):
        def __init__(self, model_path, frame_skip):
            self.frame_skip = frame_skip
            self.model = load_model_from_path(model_path)
            self.sim = MjSim(self.model)
            self.data = self.sim.data
            self.init_qpos, self.init_qvel = (
                self.data.qpos.ravel().copy(),
                self.data.qvel.ravel().copy(),
            )
            observation = self.step(np.zeros(self.model.nu))[0]
            low, high = self.model.actuator_ctrlrange.copy().T
            self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
            self.observation_space = gym.spaces.Box(
                -np.inf, np.inf, observation.shape, dtype=np.float64
            )
            self.seed()

        def seed(self, seed=None):
            self.np_random, seed = seeding.np_random(seed)
            return [seed]

        def reset(self):
            self.sim.reset()
            self.sim.forward()
            return self.reset_model()

        def set_state(self, qpos, qvel):
            self.sim.set_state(MjSimState(0.0, qpos, qvel, self.sim.get_state().act, {}))
            self.sim.forward()

        def do_simulation(self, ctrl, n_frames):
            self.sim.data.ctrl[:] = ctrl
            for _ in range(n_frames):
                self.sim.step()

        @property
        def dt(self):
            return self.model.opt.timestep * self.frame_skip

    modules = {name: ModuleType(name) for name in ("mjrl", "mjrl.envs", "mjrl.envs.mujoco_env")}
    modules["mjrl"].envs = modules["mjrl.envs"]
    modules["mjrl.envs"].mujoco_env = modules["mjrl.envs.mujoco_env"]
    modules["mjrl.envs.mujoco_env"].MujocoEnv = MujocoEnv
    sys.modules.update(modules)


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
        stand_in_for_mujoco_py()
        stand_in_for_mjrl()
        import d4rl.hand_manipulation_suite
        import d4rl.locomotion  # noqa: F401
    except Exception as error:  # what packages of other versions make of each other
        raise ImportError(
            f"D4RL's tasks need more packages ({error}): "
            "pip install --no-deps -r requirements-d4rl.txt"
        ) from error


# -------------------- the gymnasium face


class D4RLEnv(gymnasium.Env):
    """One of D4RL's tasks, such as pen-human-v1, as a gymnasium environment.

    An episode depends on its seed alone. The last step's info has normalized_score. The time limit
    truncates (antmaze: 700 steps in umaze, else 1000; pen 100, other hands 200); a reached goal
    (antmaze) and a dropped pen terminate. dataset_file: the name of the task's dataset."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, name):
        with (
            tempfile.TemporaryDirectory() as folder,  # a maze leaves its XML file behind
            mock.patch("tempfile.tempdir", folder),
            contextlib.redirect_stdout(None),  # it prints its goal
        ):
            self.env = gym.make(name)
        self.name = name
        raw = self.env.unwrapped
        self.inner = getattr(raw, "wrapped_env", raw)  # AntMaze is in a ProxyEnv
        space = self.env.observation_space
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self.env.action_space.shape, np.float32)
        # of an episode's return: random 0, expert 1
        self.get_normalized_score = self.inner.get_normalized_score
        self.model = self.inner.sim.model
        self.dataset_file = Path(self.inner.dataset_url).name

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total = 0.0
        if seed is not None:
            self.inner.seed(seed)
            np.random.seed(seed)  # AntMaze draws its goal from NumPy's global generator
        with contextlib.redirect_stdout(None):
            return self.env.reset(), {}

    def step(self, action):
        observation, reward, done, info = self.env.step(action)
        # only at the limit, and False where it was done as well
        truncated = info.pop("TimeLimit.truncated", False)
        self.total += float(reward)
        info["normalized_score"] = self.get_normalized_score(self.total)
        return observation, float(reward), bool(done and not truncated), truncated, info

    def render(self):
        return self.inner.sim.render(480, 480)[::-1]


# -------------------- what ogbench has under the same names


def make_env_and_datasets(name, dataset_dir=None, env_only=False):
    """A task's environment, its data (see load_dataset) and None, as there is no validation data;
    with env_only the environment alone.

    The data is downloaded if missing, into dataset_dir, else $D4RL_DATASET_DIR, else
    ~/.d4rl/datasets. Raises OSError where that fails, ValueError where a file is not the task's."""
    env = D4RLEnv(name)
    if env_only:
        return env
    return env, load_dataset(download(env, dataset_dir), env), None


def download_datasets(names, dataset_dir=None):
    """Downloads the datasets of tasks that are not there. Raises OSError."""
    for name in names:
        download(D4RLEnv(name), dataset_dir)


def default_dataset_dir():
    return os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets"


def download(env, dataset_dir):
    """Downloads a task's dataset if it is missing. Returns its path. Raises OSError."""
    folder = Path(os.path.expanduser(dataset_dir or default_dataset_dir()))
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


def load_dataset(path, env):
    """The steps that d4rl.qlearning_dataset makes of a file, as float32, named as OGBench's.

    observations, next_observations (N, O); actions (N, A); rewards (N,), in AntMaze -1 per step
    until the goal; masks (N,): 0 at a terminal state; terminals (N,): 1 at an episode's last step.
    A step at a time limit is left out: what follows it is of the next episode. Raises ValueError
    where the file is damaged or of another task."""
    try:
        with h5py.File(path) as file:
            keys = ("observations", "actions", "rewards", "terminals", "timeouts")
            observations, actions, *flat = (file[key][:] for key in keys)
    except Exception as error:  # whatever a damaged file makes h5py raise
        raise ValueError(f"{path} is damaged or not D4RL's: {error}") from error
    rewards, terminals, timeouts = (array.reshape(-1) for array in flat)
    n = len(rewards)
    shapes = [x.shape for x in (observations, actions, terminals, timeouts)]
    spaces = [env.observation_space.shape, env.action_space.shape, (), ()]
    if n < 2 or shapes != [(n, *space) for space in spaces]:
        raise ValueError(f"{path} is not of {env.name}: {n} rewards beside arrays of {shapes}")
    terminals, timeouts = terminals.astype(bool), timeouts.astype(bool)
    keep = np.flatnonzero(~timeouts[:-1])
    antmaze = "antmaze" in env.name
    # an episode of AntMaze's data goes on at the goal, one of Adroit's ends at a terminal state
    last = timeouts[keep + 1] | terminals[keep] & (not antmaze)
    last[-1:] = True
    data = {
        "observations": observations[keep],
        "actions": actions[keep],
        "next_observations": observations[keep + 1],
        "rewards": rewards[keep] - antmaze,
        "masks": ~terminals[keep],
        "terminals": last,
    }
    return {key: value.astype(np.float32, copy=False) for key, value in data.items()}

"""Makes a dataset locally, with no download of data.

    python tools/collect.py --env-id cube-single --episodes 100 --data-dir data
    python tools/collect.py --env-id door-expert-v1 --policy door-v0.pickle --data-dir data

OGBench's `play` (cube, scene, puzzle) and `navigate` (pointmaze) datasets come from the scripted
oracles inside the ogbench package, by the generation settings that OGBench published. Written are
`<dataset>.npz` and `<dataset>-val.npz` (one tenth more episodes) in the official format. antmaze,
humanoidmaze and antsoccer cannot be made this way: their data comes from trained walkers.

D4RL's expert datasets of pen, door, hammer and relocate come from the DAPG policies that D4RL
recorded, by D4RL's recipe: the files `dapg/policies/*.pickle` of github.com/aravindr93/hand_dapg.
Written is `<env-id>.hdf5` in D4RL's format.

Each file says inside, under `source`, that it was made here. With fewer episodes than the official
dataset has, a score on it is not comparable with a published one.
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import io
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is drawn; else glfw asks for a display
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32.*")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where tools is

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
import ogbench  # noqa: E402, registers the environments
import tyro  # noqa: E402
from tqdm import tqdm  # noqa: E402

CACHE = Path(ogbench.utils.DEFAULT_DATASET_DIR).expanduser()
D4RL_CACHE = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
PLAY = [
    "cube-single",
    "cube-double",
    "cube-triple",
    "cube-quadruple",
    "scene",
    "puzzle-3x3",
    "puzzle-4x4",
    "puzzle-4x5",
    "puzzle-4x6",
]
NAVIGATE = ["pointmaze-medium", "pointmaze-large", "pointmaze-giant", "pointmaze-teleport"]
EXPERT = ["pen-expert-v1", "door-expert-v1", "hammer-expert-v1", "relocate-expert-v1"]
EXPERT_EPISODES = 5000  # of each of D4RL's expert datasets
P_STACK = {
    "cube-single": (0, 0),
    "cube-double": (0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


@dataclass
class Args:
    env_id: str
    """OGBench's family, such as cube-single, scene, puzzle-3x3 or pointmaze-medium, or D4RL's
    pen-expert-v1, door-expert-v1, hammer-expert-v1 or relocate-expert-v1"""
    policy: Path | None = None
    """the policy that plays D4RL's task: the task's pickle of DAPG, or an npz file of its arrays.
    No code in the file is run"""
    episodes: int | None = None
    """training episodes. OGBench: of 1001 steps (pointmaze-giant: 2001), one tenth more are made
    for validation; unset: 100. D4RL: unset: the official 5000, with --report 200"""
    report: bool = False
    """write no data: play the policy of D4RL's task, without and with its noise, and print the
    normalised returns"""
    data_dir: Path = Path("data")
    """where the files go; not the cache of ogbench or d4rl, which is for official data"""
    seed: int = 0
    """the same seed gives the same files on one machine, whatever the number of jobs"""
    jobs: int = os.cpu_count() or 1
    """processes"""


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints only the message."""


# ---------------------------------------------------------------------------- OGBench's episodes


def make_env(family):
    """The family's data-collection environment: no task, no end but the time limit."""
    kwargs = {"mode": "data_collection"} if family in PLAY else {}
    kwargs["max_episode_steps"] = 2001 if family == "pointmaze-giant" else 1001
    return gymnasium.make(f"{family}-v0", terminate_at_goal=False, **kwargs)


def record(steps, observation, action, done, info):
    steps["observations"].append(observation)
    steps["actions"].append(action)
    steps["terminals"].append(done)
    for key in ("qpos", "qvel", "button_states"):
        if f"prev_{key}" in info:
            steps.setdefault(key, []).append(info[f"prev_{key}"])


def play_episode(env, family, seed):
    """One episode of plan oracles that reach one random target after another.

    OGBench's generate_manipspace.py."""
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    noise = {"noise": 0.1, "noise_smoothing": 0.5}
    if family.startswith("puzzle"):
        oracles = {"button": ButtonPlanOracle(env=env, gripper_always_closed=True, **noise)}
    else:
        kinds = {"cube": CubePlanOracle}
        if family == "scene":
            kinds |= {
                "button": ButtonPlanOracle,
                "drawer": DrawerPlanOracle,
                "window": WindowPlanOracle,
            }
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


def navigate_episode(env, family, seed):
    """One episode of walking to one random goal after another, with noise.

    OGBench's generate_locomaze.py."""
    maze = env.unwrapped
    free, goals = free_and_goal_cells(maze.maze_map)
    start = free[np.random.randint(len(free))]
    goal = goals[np.random.randint(len(goals))]
    task = {"init_ij": start, "goal_ij": goal}
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


# ------------------------------------------------------------------------------ D4RL's experts

LAYERS = ["w0", "b0", "w1", "b1", "w2", "b2"]
SCALES = ["in_shift", "in_scale", "out_shift", "out_scale"]
WEIGHTS = [*LAYERS, *SCALES, "log_std"]


class Attributes:
    """Stands for a class that a pickle names: takes attributes and has no code of its own."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_storage(content):
    """The numbers behind tensors, which torch pickled as a file in the file."""
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_tensor(storage, offset, size, stride, *_):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has other storages by now
        numbers = torch.tensor([], dtype=storage.dtype).set_(storage.untyped())
    return torch.as_strided(numbers, size, stride, offset)  # refuses what lies outside the storage


def read_parameter(tensor, *_):
    return tensor


def read_function(_, name):
    """A function of torch's is pickled as getattr(owner, name). Its name is all that is needed."""
    return name


class PolicyUnpickler(pickle.Unpickler):
    """Reads a DAPG policy. A pickle can name any function to be called, so only these are known.

    numpy's arrays are passed over: each of them is in the policy a second time, as a tensor."""

    KNOWN = {
        "mjrl.policies.gaussian_mlp.MLP": Attributes,
        "mjrl.utils.fc_network.FCNetwork": Attributes,
        "torch.nn.modules.container.ModuleList": Attributes,
        "torch.nn.modules.linear.Linear": Attributes,
        "torch.nn.backends.thnn._get_thnn_function_backend": Attributes,
        "torch._C._VariableFunctions": Attributes,
        "torch._C._VariableFunctionsClass": Attributes,
        "torch._utils._rebuild_parameter": read_parameter,
        "torch._utils._rebuild_tensor_v2": read_tensor,
        "torch.storage._load_from_bytes": read_storage,
        "numpy.ndarray": Attributes,
        "numpy.dtype": Attributes,
        "numpy.core.multiarray._reconstruct": Attributes,
        "numpy.core.multiarray.scalar": Attributes,
        "numpy._core.multiarray._reconstruct": Attributes,
        "numpy._core.multiarray.scalar": Attributes,
        "collections.OrderedDict": dict,
        "builtins.set": set,
        "builtins.getattr": read_function,
    }

    def find_class(self, module, name):
        known = self.KNOWN.get(f"{module}.{name}")
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a policy")
        return known


def read_pickle(path):
    """The arrays of a DAPG policy's pickle, by the names in WEIGHTS."""
    with open(path, "rb") as file:
        try:
            policy = PolicyUnpickler(file).load()
        except Exception as error:  # a damaged pickle can make its reader raise anything
            reason = " ".join(str(error).split())
            raise UserError(f"it cannot be read: {reason or type(error).__name__}") from error
    try:
        network = policy.model
        layers = network._modules["fc_layers"]._modules.values()
        tensors = [tensor for layer in layers for tensor in layer._parameters.values()]
        tensors += [getattr(network, name) for name in SCALES] + [policy.log_std]
        arrays = [tensor.detach().numpy() for tensor in tensors]
        nonlinearity = network.nonlinearity
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError("it is a pickle of something else than a DAPG policy") from error
    if nonlinearity != "tanh" or len(arrays) != len(WEIGHTS):
        raise UserError("it is not a tanh network of two hidden layers, as D4RL's experts are")
    return dict(zip(WEIGHTS, arrays, strict=True))


def read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"it cannot be read: {error}") from error
    missing = sorted(set(WEIGHTS) - set(arrays))
    if missing:
        raise UserError(f"it has no array {' and no '.join(missing)}")
    return arrays


def check_weights(weights, env):
    """Raises UserError where arrays are not those of a policy for env."""
    observations, actions = env.observation_space.shape[0], env.action_space.shape[0]
    shapes = [weights[name].shape for name in WEIGHTS]
    if [len(shape) for shape in shapes] != [2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1]:
        raise UserError("its arrays have not the shapes of a DAPG policy's")
    inputs, outputs = shapes[0][1], shapes[4][0]
    if (inputs, outputs) != (observations, actions):
        raise UserError(
            f"it turns {inputs} observations into {outputs} actions, and {env.name} has "
            f"{observations} and {actions}: it is another task's"
        )
    first, second = shapes[1][0], shapes[3][0]
    layers = [(first, inputs), (first,), (second, first), (second,), (outputs, second)]
    if shapes != [*layers, (outputs,), (inputs,), (inputs,), *[(outputs,)] * 3]:
        raise UserError("its arrays have not the shapes of a DAPG policy's")
    for name in WEIGHTS:
        if weights[name].dtype.kind != "f" or not np.isfinite(weights[name]).all():
            raise UserError(f"its array {name} holds NaN, infinity or no numbers")


def load_policy(path, env):
    """The weights of the policy in a file, as float32. Raises UserError where they do not fit."""
    try:
        weights = read_npz(path) if zipfile.is_zipfile(path) else read_pickle(path)
        check_weights(weights, env)
    except UserError as error:
        raise UserError(f"--policy {path}: {error}") from error
    except OSError as error:
        raise UserError(f"--policy {path} cannot be read ({error.strerror})") from error
    return {name: weights[name].astype(np.float32) for name in WEIGHTS}


def mean_action(weights, observation):
    """The policy's action (A,) for an observation (O,), before noise."""
    w = weights
    x = (observation.astype(np.float32) - w["in_shift"]) / (w["in_scale"] + np.float32(1e-8))
    x = np.tanh(w["w0"] @ x + w["b0"])
    x = np.tanh(w["w1"] @ x + w["b1"])
    x = w["w2"] @ x + w["b2"]
    return x * w["out_scale"] + w["out_shift"]


def expert_episode(env, weights, seed, noise):
    """One episode of D4RL's recipe (hand_dapg_policies.py). noise: 1, or 0 for mean actions.

    It ends at the time limit, which is no terminal state, or where the environment says so."""
    generator = np.random.default_rng(seed)
    std = noise * np.exp(weights["log_std"].astype(np.float64))
    limit = env.env.spec.max_episode_steps
    steps = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    observation, _ = env.reset(seed=seed)
    done = False
    while not done:
        action = mean_action(weights, observation) + std * generator.standard_normal(len(std))
        action = np.clip(action, -1, 1)
        next_observation, reward, terminated, _, _ = env.step(action)
        timeout = len(steps["rewards"]) + 1 == limit
        done = terminated or timeout
        steps["observations"].append(observation)
        steps["actions"].append(action)
        steps["rewards"].append(reward)
        steps["terminals"].append(terminated and not timeout)
        steps["timeouts"].append(timeout)
        observation = next_observation
    return steps


# -------------------------------------------------------------------------------------- collecting


def make_d4rl_env(env_id):
    from tools.d4rl_compat import D4RLEnv  # an ImportError says what to install

    return D4RLEnv(env_id)


def start_worker(env_id, weights):
    global worker_env, worker_weights
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    worker_env = make_d4rl_env(env_id) if env_id in EXPERT else make_env(env_id)
    worker_weights = weights


def collect_episode(env_id, seed, noise, index):
    """Episode `index`, a function of the arguments alone, as arrays in the official types."""
    episode_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    if env_id in EXPERT:
        steps = expert_episode(worker_env, worker_weights, episode_seed, noise)
    else:
        np.random.seed(episode_seed)  # the oracles and mazes draw from NumPy's global generator
        worker_env.action_space.seed(episode_seed)
        episode = play_episode if env_id in PLAY else navigate_episode
        steps = episode(worker_env, env_id, episode_seed)
    types = {"terminals": bool, "timeouts": bool, "button_states": np.int64}
    return {key: np.asarray(x, dtype=types.get(key, np.float32)) for key, x in steps.items()}


def play(args, weights, count, noise, title):
    """Episodes 0 to count - 1, in order. Returns a list of dicts of arrays."""
    pool = concurrent.futures.ProcessPoolExecutor(
        max_workers=min(args.jobs, count),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(args.env_id, weights),
    )
    job = functools.partial(collect_episode, args.env_id, args.seed, noise)
    try:
        results = pool.map(job, range(count))
        return list(tqdm(results, total=count, desc=title, unit="episode", dynamic_ncols=True))
    finally:
        pool.shutdown(cancel_futures=True)


def save(path, episodes, source):
    """Writes a file under another name and moves it into place once it is whole."""
    arrays = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            if path.suffix == ".hdf5":
                write_hdf5(file, arrays, source)
            else:
                np.savez_compressed(file, **arrays, source=np.array(source))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_hdf5(file, arrays, source):
    import h5py

    with h5py.File(file, "w") as content:
        for key, array in arrays.items():
            content.create_dataset(key, data=array, compression="gzip")
        content.attrs["source"] = source


def source_of(path):
    """Where a dataset file says that it came from."""
    try:
        if path.suffix == ".hdf5":
            from tools.d4rl_compat import source_of_dataset

            return source_of_dataset(path)
        with np.load(path) as file:
            return str(file["source"]) if "source" in file else "an official dataset"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it or choose another --data-dir"
        ) from error


def check(args):
    """Raises UserError where the arguments make no sense."""
    if args.env_id.split("-")[0] in ("antmaze", "humanoidmaze", "antsoccer"):
        raise UserError(
            f"--env-id {args.env_id}: this data comes from trained walkers and cannot be "
            "collected with a scripted oracle; drol.py downloads the official dataset"
        )
    known = PLAY + NAVIGATE + EXPERT
    if args.env_id not in known:
        raise UserError(f"--env-id {args.env_id}: choose one of {', '.join(known)}")
    if args.env_id in EXPERT and args.policy is None:
        file = f"dapg/policies/{args.env_id.split('-')[0]}-v0.pickle"
        raise UserError(
            f"--env-id {args.env_id} needs --policy FILE: {file} of github.com/aravindr93/hand_dapg"
        )
    for flag in ("policy", "report"):
        if args.env_id not in EXPERT and getattr(args, flag):
            raise UserError(f"--{flag} is for {', '.join(EXPERT)}; leave it out")
    for flag in ("episodes", "jobs"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: give 1 or more")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give 0 or more")
    if args.data_dir.expanduser().resolve() in (CACHE.resolve(), D4RL_CACHE.resolve()):
        raise UserError(
            f"--data-dir {args.data_dir} is the cache of official data; collected data needs a "
            "folder of its own"
        )


def is_there(files, source):
    """Whether these very files were collected before. Raises UserError where others are there."""
    found = [source_of(path) for path in files if path.exists()]
    if found == [source] * len(files):
        return True
    for other in set(found) - {source}:  # a part of ours is what a cut-off call left: made again
        raise UserError(
            f"{' or '.join(map(str, files))} already holds other data ({other}); move it away or "
            "choose another --data-dir"
        )
    return False


def prepare_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--data-dir {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error


def versions(*packages):
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def collect_ogbench(args):
    count = args.episodes or 100
    kind = "play" if args.env_id in PLAY else "navigate"
    train = args.data_dir.expanduser() / f"{args.env_id}-{kind}-v0.npz"
    validation = train.with_name(f"{train.stem}-val.npz")
    source = (
        f"collected locally: {count} episodes, seed {args.seed}, {versions('ogbench', 'mujoco')}"
    )
    if is_there([train, validation], source):
        print(f"{train} is already there ({source})")
        return
    prepare_folder(train.parent)
    episodes = play(args, None, count + max(1, count // 10), 0, train.stem)
    save(validation, episodes[count:], source)
    save(train, episodes[:count], source)
    transitions = sum(len(episode["actions"]) - 1 for episode in episodes[:count])
    print(f"{train}: {count} episodes, {transitions:,} transitions; validation beside it")


def normalised_returns(env, episodes):
    """D4RL's score of each episode: 0 is a random policy's, 100 the reference expert's."""
    returns = [episode["rewards"].sum(dtype=np.float64) for episode in episodes]
    return 100 * np.array([env.get_normalized_score(total) for total in returns])


def summary(scores):
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
    return (
        f"normalised return {scores.mean():.2f}, standard error {error:.2f}, "
        f"median {np.median(scores):.2f}"
    )


def report_expert(args):
    env = make_d4rl_env(args.env_id)
    weights = load_policy(args.policy, env)
    count = args.episodes or 200
    for noise, title in ((0, "mean actions"), (1, "sampled actions")):
        scores = normalised_returns(env, play(args, weights, count, noise, title))
        print(f"{args.env_id}, {title}, {count} episodes: {summary(scores)}")


def collect_expert(args):
    env = make_d4rl_env(args.env_id)
    weights = load_policy(args.policy, env)
    count = args.episodes or EXPERT_EPISODES
    size = "" if count == EXPERT_EPISODES else f" (official size: {EXPERT_EPISODES})"
    digest = hashlib.sha256(b"".join(array.tobytes() for array in weights.values()))
    source = (
        f"collected locally: {count} episodes{size}, seed {args.seed}, "
        f"DAPG policy {digest.hexdigest()[:8]}, {versions('d4rl', 'mujoco')}"
    )
    path = args.data_dir.expanduser() / env.dataset_file
    if is_there([path], source):
        print(f"{path} is already there ({source})")
        return
    prepare_folder(path.parent)
    episodes = play(args, weights, count, 1, path.stem)
    save(path, episodes, source)
    transitions = sum(len(episode["actions"]) for episode in episodes)
    print(f"{path}: {count} episodes, {transitions:,} transitions")
    print(summary(normalised_returns(env, episodes)))


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    try:
        check(args)
        if args.report:
            report_expert(args)
        elif args.env_id in EXPERT:
            collect_expert(args)
        else:
            collect_ogbench(args)
    except (UserError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

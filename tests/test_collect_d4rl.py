"""Tests of tools/collect.py on D4RL's expert datasets: what it reads, and what it writes."""

import io
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import drol
from tools import collect

h5py = pytest.importorskip("h5py")
load_dataset = pytest.importorskip("d4rl_compat").load_dataset
collect_d4rl = pytest.importorskip("tools.collect_d4rl")

OBSERVATIONS, ACTIONS, HIDDEN = 39, 28, 8  # of door
DOOR = ["--env-id", "door-expert-v1", "--jobs", "1"]


# ------------------------------------------------------------------------------- policies to read


@pytest.fixture(scope="module")
def mjrl():
    """Empty classes under the names that a DAPG policy's pickle uses, as a user's mjrl has them."""
    names = ["mjrl", "mjrl.policies", "mjrl.policies.gaussian_mlp", "mjrl.utils",
             "mjrl.utils.fc_network"]  # fmt: skip
    modules = {name: ModuleType(name) for name in names}
    for name, module in (("MLP", names[2]), ("FCNetwork", names[4])):
        made = type(name, (), {"__module__": module})
        setattr(modules[module], name, made)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield modules


@pytest.fixture(scope="module")
def make_policy(mjrl):
    """A function that makes a policy as mjrl does, of random weights, for door unless told."""

    def make(inputs=OBSERVATIONS, outputs=ACTIONS, nonlinearity=torch.tanh):
        torch.manual_seed(0)
        network = mjrl["mjrl.utils.fc_network"].FCNetwork()
        layers = [
            torch.nn.Linear(inputs, HIDDEN),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.Linear(HIDDEN, outputs),
        ]
        network._modules = OrderedDict(fc_layers=torch.nn.ModuleList(layers))
        network.in_shift, network.in_scale = torch.randn(inputs), torch.rand(inputs) + 0.5
        network.out_shift, network.out_scale = torch.randn(outputs) / 9, torch.rand(outputs)
        network.transformations = {"in_shift": network.in_shift.numpy().astype(np.float64)}
        network.nonlinearity = nonlinearity
        policy = mjrl["mjrl.policies.gaussian_mlp"].MLP()
        policy.model = network
        policy.log_std = torch.full((outputs,), -2.0, requires_grad=True)
        policy.log_std_val = np.float64(policy.log_std.detach().numpy())
        policy.d = np.int64(3)
        policy.trainable_params = [*network._modules["fc_layers"].parameters(), policy.log_std]
        return policy

    return make


@pytest.fixture(scope="module")
def policy_file(make_policy, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "door-v0.pickle"
    path.write_bytes(pickle.dumps(make_policy(), protocol=3))  # DAPG's files are of protocol 3
    return path


@pytest.fixture(scope="module")
def door():
    return collect_d4rl.make_env("door-expert-v1")


def read_policy(path):
    return collect_d4rl.load_policy(SimpleNamespace(policy=path, env_id="door-expert-v1"))


def arrays_of(policy):
    network = policy.model
    parameters = [p.detach().numpy() for p in network._modules["fc_layers"].parameters()]
    scales = [network.in_shift, network.in_scale, network.out_shift, network.out_scale]
    arrays = [*parameters, *[scale.numpy() for scale in scales], policy.log_std.detach().numpy()]
    return dict(zip(collect_d4rl.WEIGHTS, arrays, strict=True))


def refusal(*flags):
    """What the program says when it refuses."""
    with pytest.raises(SystemExit) as exit:
        collect.main([*map(str, flags)])
    message = str(exit.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_pickle_gives_the_policys_weights(make_policy, tmp_path, protocol):
    policy, path = make_policy(), tmp_path / "policy.pickle"
    path.write_bytes(pickle.dumps(policy, protocol))
    weights = read_policy(path)
    for name, array in arrays_of(policy).items():
        np.testing.assert_array_equal(weights[name], array)


def test_an_npz_gives_the_same_weights(make_policy, policy_file, tmp_path):
    path = tmp_path / "door.npz"
    np.savez(path, **arrays_of(make_policy()))
    read, expected = read_policy(path), read_policy(policy_file)
    assert all(np.array_equal(read[name], expected[name]) for name in collect_d4rl.WEIGHTS)


def test_the_mean_action_is_the_networks(make_policy, policy_file):
    policy = make_policy()
    network, layers = policy.model, policy.model._modules["fc_layers"]
    observation = np.random.default_rng(0).normal(size=OBSERVATIONS)
    with torch.no_grad():
        x = torch.as_tensor(observation, dtype=torch.float32)
        x = (x - network.in_shift) / (network.in_scale + 1e-8)
        x = layers[2](torch.tanh(layers[1](torch.tanh(layers[0](x)))))
        expected = x * network.out_scale + network.out_shift
    weights = read_policy(policy_file)
    action = collect_d4rl.mean_action(weights, observation)
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5)


class Call:
    """Pickles as a call of a function. Callable, so that the function can be such a call too."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __call__(self):
        raise AssertionError("only pickled")

    def __reduce__(self):
        return self.call


def malicious(path):
    """Pickles that would write a file at path if what they name were run."""
    command = f"touch {path}"
    inner = io.BytesIO()
    torch.save(Call(os.system, command), inner, _use_new_zipfile_serialization=False)
    return {
        "system": Call(os.system, command),
        "eval": Call(eval, f"open({str(path)!r}, 'w')"),
        "in a storage": Call(torch.storage._load_from_bytes, inner.getvalue()),
        "imported": Call(Call(getattr, Call(__import__, "os"), "system"), command),
        "in an attribute": [1, {"a": Call(os.system, command)}],
        "torch.load": Call(torch.load, io.BytesIO(inner.getvalue())),
    }


@pytest.mark.parametrize("kind", malicious(Path("ran")))
def test_no_code_of_a_pickle_runs(make_policy, tmp_path, kind):
    ran, path = tmp_path / "ran", tmp_path / "policy.pickle"
    policy = make_policy()
    policy.model.nonlinearity = malicious(ran)[kind]
    path.write_bytes(pickle.dumps(policy))
    message = refusal(*DOOR, "--policy", path, "--data-dir", tmp_path / "data")
    assert str(path) in message and not ran.exists()
    assert not (tmp_path / "data").exists()


def test_the_malicious_pickles_would_run(tmp_path):
    """Else the test above would show nothing."""
    for kind, value in malicious(tmp_path / "ran").items():
        if kind not in ("in a storage", "torch.load"):
            pickle.loads(pickle.dumps(value))
            assert (tmp_path / "ran").exists(), kind
            (tmp_path / "ran").unlink()


def test_files_that_are_no_policy_are_refused(make_policy, policy_file, tmp_path):
    whole, path = policy_file.read_bytes(), tmp_path / "file"
    arrays = arrays_of(make_policy())
    npz = io.BytesIO()
    np.savez(npz, **arrays)

    def savez(**changed):
        file = io.BytesIO()
        np.savez(file, **(arrays | changed))
        return file.getvalue()

    def says(words):
        message = refusal(*DOOR, "--policy", path, "--data-dir", tmp_path / "data")
        assert f"--policy {path} " in message and "39 observations and 28 actions" in message
        assert words in message, message

    says("No such file")
    for content, words in (
        (b"", "EOFError"),
        (b"not a pickle", "UnpicklingError"),
        (whole[: len(whole) // 2], "Error"),
        (whole[:-1], "Error"),
        (npz.getvalue()[:-500], "Error"),
        (pickle.dumps({"a": 1}), "'dict' object"),
        (pickle.dumps([{"observations": np.zeros(3)}]), "'list' object"),
        (pickle.dumps(Path("a")), "'Inert' object"),
        (pickle.dumps(make_policy(45, 24)), "(39,) (45,)"),
        (pickle.dumps(make_policy(outputs=24)), "(24,)"),
        (pickle.dumps(make_policy(nonlinearity=torch.relu)), "relu, not tanh"),
        (savez(w1=np.zeros((HIDDEN, HIDDEN + 1), np.float32)), "ValueError"),
        (savez(log_std=np.float32(0)), "ValueError"),
        (savez(b1=np.full(HIDDEN, np.nan, np.float32)), "NaN"),
        (savez(b1=np.full(HIDDEN, "x")), "'x'"),
        (savez(b1=np.array([None] * HIDDEN)), "allow_pickle"),
        (savez(b1=np.array([Call(os.system, f"touch {tmp_path / 'ran'}")])), "allow_pickle"),
    ):
        path.write_bytes(content)
        says(words)
    with open(path, "wb") as file:
        np.savez(file, w0=arrays["w0"])
    says("b0")
    path.unlink()
    path.mkdir()
    says("directory")
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def collected(policy_file, tmp_path_factory):
    """Two episodes of door, made with one process."""
    folder = tmp_path_factory.mktemp("collected")
    flags = [*DOOR, "--policy", policy_file, "--episodes", 2, "--data-dir", folder]
    collect.main([*map(str, flags)])
    return folder, [*map(str, flags)]


def test_the_file_is_d4rls_and_says_what_it_is(collected, door):
    path = collected[0] / "door-expert-v1.hdf5"
    with h5py.File(path) as file:
        assert set(file) == {"observations", "actions", "rewards", "terminals", "timeouts"}
        assert all(file[key].compression == "gzip" for key in file)
        content = {key: file[key][:] for key in file}
    assert content["observations"].shape == (400, OBSERVATIONS)
    assert content["actions"].shape == (400, ACTIONS)
    for key in ("observations", "actions", "rewards"):
        assert content[key].dtype == np.float32
    assert np.abs(content["actions"]).max() <= 1
    assert np.flatnonzero(content["timeouts"]).tolist() == [199, 399]
    assert not content["terminals"].any()
    source = collect_d4rl.read_source(path)
    assert source.startswith("collected locally: 2 episodes (official size: 5000), seed 0")
    rewards = load_dataset(path, door)["rewards"]
    assert len(rewards) == 398  # a step at a time limit has no next one


def test_actions_are_samples_of_the_policy(collected, policy_file):
    weights = read_policy(policy_file)
    with h5py.File(collected[0] / "door-expert-v1.hdf5") as file:
        observations, actions = file["observations"][:], file["actions"][:]
    means = np.array([collect_d4rl.mean_action(weights, x) for x in observations])
    noise = actions - means
    inside = (np.abs(actions) < 1).all(1)
    assert inside.sum() > 100
    # log_std is -2; the standard error over 100 x 28 samples is about 0.002
    assert noise[inside].std() == pytest.approx(np.exp(-2), rel=0.1)
    assert abs(noise[inside].mean()) < 0.01
    both = inside[:200] & inside[200:]  # the noise of one episode is not that of the other
    assert both.sum() > 50
    assert abs(np.corrcoef(noise[:200][both].ravel(), noise[200:][both].ravel())[0, 1]) < 0.15


def test_rewards_follow_from_the_actions(collected, door):
    with h5py.File(collected[0] / "door-expert-v1.hdf5") as file:
        content = {key: file[key][200:] for key in file}  # the second episode
    seed = int(np.random.SeedSequence([0, 1]).generate_state(1)[0])
    observation, _ = door.reset(seed=seed)
    for i in range(20):
        np.testing.assert_allclose(observation, content["observations"][i], rtol=0, atol=1e-4)
        observation, reward, *_ = door.step(content["actions"][i])
        assert reward == pytest.approx(content["rewards"][i], abs=1e-3)


def test_a_dropped_pen_is_terminal(make_policy, tmp_path):
    path = tmp_path / "pen.pickle"
    path.write_bytes(pickle.dumps(make_policy(45, 24)))
    flags = ["--env-id", "pen-expert-v1", "--policy", path, "--episodes", 4, "--jobs", 1]
    collect.main([*map(str, flags), "--data-dir", str(tmp_path)])
    with h5py.File(tmp_path / "pen-expert-v1.hdf5") as file:
        terminals, timeouts = file["terminals"][:], file["timeouts"][:]
    assert terminals.any() and not (terminals & timeouts).any()
    ends = np.flatnonzero(terminals | timeouts)
    assert len(ends) == 4 and ends[-1] == len(terminals) - 1
    lengths = np.diff([-1, *ends])
    assert (lengths[timeouts[ends]] == 100).all() and (lengths[terminals[ends]] <= 100).all()


@pytest.mark.parametrize("drops_at, terminal, timeout", [(2, 2, None), (3, None, 3), (9, None, 3)])
def test_a_fall_at_the_time_limit_is_a_timeout_alone(monkeypatch, drops_at, terminal, timeout):
    """In D4RL's recipe a step at the limit, here the third, is never terminal."""
    count = iter(range(1, 10))
    step = lambda action: (np.zeros(2), 1.0, next(count) == drops_at, False, {})
    spec = SimpleNamespace(max_episode_steps=3)
    env = SimpleNamespace(reset=lambda seed: (np.zeros(2), {}), step=step,
                          env=SimpleNamespace(spec=spec))  # fmt: skip
    monkeypatch.setattr(collect_d4rl, "mean_action", lambda policy, observation: np.zeros(2))
    steps = collect_d4rl.play_episode({"log_std": np.zeros(2)}, 1, env, 0)
    assert steps["terminals"] == [n == terminal for n in range(1, len(steps["rewards"]) + 1)]
    assert steps["timeouts"] == [n == timeout for n in range(1, len(steps["rewards"]) + 1)]
    assert len(steps["rewards"]) == (terminal or timeout)


def test_jobs_change_nothing_and_a_second_call_keeps_the_file(collected, tmp_path, capsys):
    folder, flags = collected
    path = folder / "door-expert-v1.hdf5"
    before = path.stat().st_mtime_ns
    collect.main(flags)
    assert path.stat().st_mtime_ns == before and "already there" in capsys.readouterr().out
    assert "other data" in refusal(*flags, "--seed", 1)
    collect.main([*flags, "--jobs", "2", "--data-dir", str(tmp_path)])
    with h5py.File(path) as one, h5py.File(tmp_path / "door-expert-v1.hdf5") as other:
        assert all(np.array_equal(one[key][:], other[key][:]) for key in one)
    official = tmp_path / "official"
    official.mkdir()
    with h5py.File(official / "door-expert-v1.hdf5", "w") as file:
        file["observations"] = np.zeros((3, OBSERVATIONS))
    assert "official or unknown" in refusal(*flags, "--data-dir", official)
    (official / "door-expert-v1.hdf5").write_bytes(b"damaged")
    assert "damaged" in refusal(*flags, "--data-dir", official)


def test_the_report_prints_returns_and_writes_nothing(policy_file, tmp_path, capsys):
    flags = [*DOOR, "--policy", policy_file, "--report", "--episodes", 2, "--data-dir", tmp_path]
    collect.main([*map(str, flags)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "door-expert-v1, mean actions, 2 episodes",
        "door-expert-v1, sampled actions, 2 episodes",
    ]
    assert not list(tmp_path.iterdir())


def test_drol_loads_it(collected):
    data = drol.load_data("door-expert-v1", str(collected[0]), "cpu")
    assert data["observations"].shape == (398, OBSERVATIONS)
    assert data["masks"].all() and data["rewards"].isfinite().all()


def test_the_folder_of_official_data_is_refused(policy_file):
    folder = collect_d4rl.CACHE
    message = refusal(*DOOR, "--policy", policy_file, "--data-dir", folder)
    assert "is for official data" in message

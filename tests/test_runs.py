"""Tests of runs: their folders, records and checkpoints, going on, stopping, being killed."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import filelock
import gymnasium
import numpy as np
import ogbench
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drol
import fql
from tests.corridor import NAME, install, train
from tests.helpers import (
    ROOT,
    command,
    every_program,
    mounted,
    read,
    refused,
    run_of,
    same_weights,
)


@pytest.fixture
def short_episodes(monkeypatch):
    make = functools.partial(gymnasium.make, max_episode_steps=50)
    monkeypatch.setattr(gymnasium, "make", make)


@pytest.fixture
def corridor_run(monkeypatch, tmp_path):
    """corridor_run(program, name, *flags) trains in corridors and returns the run's folder."""
    install(monkeypatch)

    def run(program, name, *flags):
        program.main(command("unused", tmp_path / name, *flags, env_id="cube-single"))
        return run_of(tmp_path / name)

    return run


def steps_of(run, name="eval"):
    return [int(row["step"]) for row in read(run / f"{name}.csv")]


def without_rates(path):
    return [row | {"updates_per_second": ""} for row in read(path)]


def same_run(a, b):
    """Two runs have the same weights and records, bit for bit. Rates alone may differ."""
    assert same_weights(a, b)
    assert (a / "eval.csv").read_bytes() == (b / "eval.csv").read_bytes()
    assert without_rates(a / "train.csv") == without_rates(b / "train.csv")


def tensorboard_is_the_csv_files(run):
    """Each row once."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    for name in ("train", "eval"):
        rows = read(run / f"{name}.csv")
        for key in rows[0].keys() - {"step"}:
            points = events.Scalars(f"{name}/{key}")
            assert [x.step for x in points] == [int(row["step"]) for row in rows]
            values = [float(row[key]) for row in rows]
            assert [x.value for x in points] == pytest.approx(values, rel=1e-5)


# -------------------------------------------------------------------------------- what it leaves


@every_program
def test_what_a_run_prints_and_leaves(program, capsys, data_dir, tmp_path, short_episodes):
    flags = ["--snapshot-interval", 10, "--eval-interval", 5]
    program.main(command(data_dir, tmp_path, *flags))
    out = capsys.readouterr().out
    env_name = "pointmaze-medium-navigate-singletask-task1-v0"
    method = "drol-k16-bc_coef0.3" if program is drol else "fql-alpha10"
    run = tmp_path / env_name / method / "seed0"
    assert steps_of(run) == [5, 10, 15, 20] and steps_of(run, "train") == [10, 20]
    own = ["bc_loss", "candidate_spread"] if program is drol else ["flow_loss", "distill_loss"]
    rows = read(run / "train.csv")
    assert set(rows[0]) == {"step", "critic_loss", "q_data", "actor_loss", "q_loss", "q", "mse",
                            "updates_per_second", *own}  # fmt: skip
    for row in rows:
        assert all(np.isfinite(float(value)) for value in row.values())
        assert float(row["updates_per_second"]) > 0 and 0 < float(row["mse"]) < 4
        assert all(0 < float(row[name]) < 10 for name in own)
    # no clock times: comparable bit for bit
    assert list(read(run / "eval.csv")[0]) == ["step", "score", "return", "return_std", "length"]
    tensorboard_is_the_csv_files(run)
    config = json.loads((run / "config.json").read_text())
    assert (config["algorithm"], config["env_name"]) == (program.ALGORITHM, env_name)
    assert config["versions"] == {name: drol.version(name) for name in config["versions"]}
    assert (config["steps"], config["task"], config["discount"]) == (20, 1, 0.995)
    assert config["data_dir"] == str(data_dir) and config["hidden_dims"] == [16, 16]
    saved = {
        name: torch.load(run / f"{name}.pt", weights_only=True)
        for name in ("snapshot10", "snapshot20", "checkpoint")
    }
    assert [content["step"] for content in saved.values()] == [10, 20, 20]
    assert len(list(run.glob("*.pt"))) == 3
    first, *last = [content["networks"]["actor.layers.0.weight"] for content in saved.values()]
    assert torch.equal(*last) and not torch.equal(first, last[0])
    scores = [float(row["score"]) for row in read(run / "eval.csv")]
    assert f"score {np.mean(scores[-3:]):.1f}, the mean of the last 3" in out
    assert f"tools/rollout.py '{run}/checkpoint.pt'" in out and "2,000 transitions" in out


@pytest.mark.parametrize("env_id, expected", [
    ("cube-single", "score 36.7, the mean of the last 3"),
    ("pen-human-v1", "score 60.0, the mean of the last 1"),
])  # fmt: skip
def test_the_final_score_is_the_papers(monkeypatch, capsys, tmp_path, env_id, expected):
    """OGBench: the mean of the last three evaluations; D4RL: the last one."""
    install(monkeypatch)
    scores = iter([90.0, 20.0, 30.0, 60.0])
    monkeypatch.setattr(drol, "benchmark_of", lambda name: ogbench)
    monkeypatch.setattr(drol, "evaluate", lambda *args: {"score": next(scores)})
    drol.main(command("unused", tmp_path, "--eval-interval", 5, env_id=env_id))
    assert expected in capsys.readouterr().out


def test_a_row_is_appended(monkeypatch, corridor_run):
    """The file is not written anew: what is changed in it stays."""
    record = drol.Run.record

    def note(run, name, row):
        record(run, name, row)
        if run.step == 1:
            with open(run.folder / "train.csv", "r+b") as file:
                file.write(b"STEP")

    monkeypatch.setattr(drol.Run, "record", note)
    run = corridor_run(drol, "runs", "--log-interval", 1)
    assert [int(row["STEP"]) for row in read(run / "train.csv")] == list(range(1, 21))


# ------------------------------------------------------------------------------------- randomness


def recorded(monkeypatch, folder, program, **settings):
    """The batch and the noise of every update of a run, and its first networks."""
    updates, update = [], program.update

    def note(networks, optimizer, batch, noise, args, losses):
        if not updates:
            updates.append({k: v.clone() for k, v in networks.state_dict().items()})
        updates.append({k: v.clone() for k, v in (batch | noise).items()})
        return update(networks, optimizer, batch, noise, args, losses)

    with monkeypatch.context() as patch:
        patch.setattr(program, "update", note)
        train(folder, program, **settings)
    return updates


@every_program
def test_batches_noise_and_networks_are_of_the_runs_seed(program, monkeypatch, tmp_path):
    """And of nothing else: evaluations, log rows and checkpoints draw nothing of theirs."""
    install(monkeypatch)
    first = recorded(monkeypatch, tmp_path / "a", program)
    often = {"eval_interval": 1, "log_interval": 1, "checkpoint_interval": 1, "eval_episodes": 6}
    again = recorded(monkeypatch, tmp_path / "b", program, **often)
    other = recorded(monkeypatch, tmp_path / "c", program, seed=1)
    for ours, same in zip(first, again, strict=True):
        assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    weight = "actor.layers.0.weight"
    assert not torch.equal(first[0][weight], other[0][weight])
    everything = first[1:] + other[1:]  # of 4 updates each
    for name in ("observations", *first[1].keys() - {"masks"}):
        drawn = [tuple(update[name].flatten().tolist()) for update in everything]
        assert len(set(drawn)) == 8, name


@every_program
def test_each_purpose_has_a_generator_of_its_own(program, monkeypatch, tmp_path):
    """Else batches and noise would be made of the same numbers."""
    install(monkeypatch)
    seeds, make = [], program.make_generator
    note = lambda *key: seeds.append(make(*key).initial_seed()) or make(*key)
    monkeypatch.setattr(program, "make_generator", note)
    for seed in (0, 1):
        train(tmp_path / str(seed), program, seed=seed, eval_interval=2)
    # networks, batches, noise, and the policy of each of two evaluations
    assert len(seeds) == len(set(seeds)) == 2 * 5


@every_program
def test_the_same_command_is_the_same_run_and_another_seed_is_not(program, corridor_run):
    first, again = corridor_run(program, "a"), corridor_run(program, "b")
    same_run(first, again)
    assert not same_weights(first, corridor_run(program, "c", "--seed", 1))


# --------------------------------------------------------------------------------------- going on


@every_program
def test_more_steps_continue_a_run_as_if_it_had_not_been_left(program, capsys, corridor_run):
    """With other intervals of logs and checkpoints too: they change no number."""
    parts = corridor_run(program, "parts")
    capsys.readouterr()
    more = ["--steps", 40, "--checkpoint-interval", 7, "--snapshot-interval", 30]
    corridor_run(program, "parts", *more)
    assert "resumed at update 20" in capsys.readouterr().out
    whole = corridor_run(program, "whole", *more)
    assert "resumed" not in capsys.readouterr().out
    same_run(parts, whole)
    assert steps_of(parts, "train") == [10, 20, 30, 40] and steps_of(parts) == [20, 40]
    assert same_weights(parts, whole)
    assert (parts / "snapshot30.pt").exists()
    tensorboard_is_the_csv_files(parts)
    corridor_run(program, "parts", *more)  # finished: it says its score again, and changes nothing
    same_run(parts, whole)
    assert "the mean of the last 2 evaluation(s)" in capsys.readouterr().out


def test_overwrite_starts_anew(capsys, corridor_run):
    run = corridor_run(drol, "runs")
    (run / "notes.txt").write_text("old")
    corridor_run(drol, "runs", "--steps", 10, "--overwrite", "--lr", 0.1)
    assert "resumed" not in capsys.readouterr().out
    assert not (run / "notes.txt").exists() and steps_of(run) == [10]
    assert json.loads((run / "config.json").read_text())["lr"] == 0.1


def test_what_cannot_be_overwritten_is_told(corridor_run):
    run = corridor_run(drol, "runs")
    run.rename(run.parent / "elsewhere")
    run.symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        corridor_run(drol, "runs", "--steps", 10, "--overwrite")
    assert steps_of(run) == [20]


@pytest.mark.parametrize("flags, words", [
    (["--eval-episodes", 4], "eval_episodes 2, not 4"),
    (["--eval-envs", 1], "eval_envs 2, not 1"),
    (["--lr", 0.1], "lr 0.0003, not 0.1"),
    (["--compile"], "compile False, not True"),
    (["--data-dir", "elsewhere"], "data_dir unused, not elsewhere"),
])  # fmt: skip
def test_another_run_in_the_folder_is_refused(corridor_run, tmp_path, flags, words):
    run = corridor_run(drol, "runs")
    before = {path: path.read_bytes() for path in run.iterdir()}
    args = command("unused", tmp_path / "runs", "--steps", 40, *flags, env_id="cube-single")
    refused(drol, args, run, words, "--exp-name", "--overwrite")
    assert before == {path: path.read_bytes() for path in run.iterdir()}


@every_program
def test_a_loss_that_is_not_finite_ends_the_run(program, corridor_run, tmp_path):
    """Its last good checkpoint stays, and is finite."""
    flags = ["--checkpoint-interval", 1, "--lr", 1e20, "--steps", 40]
    args = command("unused", tmp_path / "runs", *flags, env_id="cube-single")
    run = corridor_run(program, "runs", *flags[:-2], "--steps", 1)
    refused(program, args, "not finite", "--lr")
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert saved["step"] >= 1
    assert all(value.isfinite().all() for value in saved["networks"].values())


@every_program
def test_a_policy_is_loaded(program, corridor_run, tmp_path):
    checkpoint = corridor_run(program, "runs") / "checkpoint.pt"
    observation = np.array([0.5, -0.5])
    policy = program.load_policy(checkpoint, seed=1)
    action = policy(observation)
    assert action.shape == (2,) and action.dtype == np.float32 and np.abs(action).max() <= 1
    assert policy(np.tile(observation, (7, 1))).shape == (7, 2)
    assert not np.array_equal(policy(observation), policy(observation))  # a latent each time
    assert np.array_equal(program.load_policy(checkpoint, seed=1)(observation), action)
    assert not np.array_equal(program.load_policy(checkpoint, seed=2)(observation), action)
    saved = torch.load(checkpoint, weights_only=True)
    saved["networks"] = {k: x for k, x in saved["networks"].items() if k.startswith("actor.")}
    torch.save(saved, tmp_path / "actor.pt")  # as results/ has one
    assert np.array_equal(program.load_policy(tmp_path / "actor.pt", seed=1)(observation), action)
    other = fql if program is drol else drol
    with pytest.raises(AssertionError, match=f"made by {program.ALGORITHM}.py"):
        other.load_policy(checkpoint)


def test_a_checkpoint_is_always_a_whole_one(corridor_run, monkeypatch):
    def no_space(*args):
        raise OSError(28, "No space left on device")

    run = corridor_run(drol, "runs")
    before = (run / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(torch, "save", no_space)
        corridor_run(drol, "runs", "--steps", 40)
    assert (run / "checkpoint.pt").read_bytes() == before  # the disk was full
    with open(run / "checkpoint.pt", "rb") as reader:
        corridor_run(drol, "runs", "--steps", 40)
        assert reader.read() == before  # who was reading it has not lost it
    assert steps_of(run) == [20, 40] and (run / "checkpoint.pt").read_bytes() != before


def test_a_lock_is_of_all_users(corridor_run):
    """Whatever the umask of the first. A second process stays out until the lock is free."""
    before = os.umask(0o077)
    try:
        run = corridor_run(drol, "runs")
    finally:
        os.umask(before)
    lock = Path(f"{run}.lock")
    assert lock.stat().st_mode & 0o777 == 0o666
    with filelock.FileLock(lock), pytest.raises(filelock.Timeout):
        corridor_run(drol, "runs", "--steps", 40, "--overwrite")
    assert steps_of(run) == [20]
    corridor_run(drol, "runs", "--steps", 40)
    assert steps_of(run) == [20, 40]


@pytest.mark.parametrize("compile", [True, False])
@every_program
def test_the_losses_are_compiled_where_it_is_asked_for(program, monkeypatch, tmp_path, compile):
    install(monkeypatch)
    compiled, used, update = [], [], program.update
    note = lambda function, mode: compiled.append((function, mode)) or function
    monkeypatch.setattr(torch, "compile", note)
    monkeypatch.setattr(program, "update", lambda *args: used.append(args[-1]) or update(*args))
    train(tmp_path, program, compile=compile)
    assert compiled == [(program.losses, "default")] * compile and set(used) == {program.losses}


def test_tracking_is_handed_to_wandb(monkeypatch, corridor_run):
    run = corridor_run(drol, "runs")
    wandb, calls = ModuleType("wandb"), []
    wandb.init = lambda **options: calls.append(options)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(ImportError, match="wandb"):
        corridor_run(drol, "runs", "--steps", 40, "--track")
    assert steps_of(run) == [20]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    corridor_run(drol, "runs", "--steps", 40, "--track")
    (options,) = calls
    assert options["sync_tensorboard"] and options["config"]["steps"] == 40
    assert options["name"] == str(run) and NAME in options["name"]


# ------------------------------------------------------------ programs in processes of their own

# Waits with the imports done, which take seconds, and is forked into a program per line.
NURSERY = """
import json, os, runpy, sys, drol, torch._dynamo
from tensorboard.compat import tf
for line in sys.stdin:
    folder, before, sys.argv[:] = json.loads(line)
    if os.fork() == 0:
        break
else:
    os._exit(0)
if pid := os.fork():
    _, status = os.waitpid(pid, 0)
    open(f"{folder}/code", "w").write(str(os.waitstatus_to_exitcode(status)))
    os._exit(0)
os.setsid()
for number, name in ((0, "/dev/null"), (1, f"{folder}/stdout"), (2, f"{folder}/stderr")):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
open(f"{folder}/pid", "w").write(str(os.getpid()))
exec(before)
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Something that is to happen before the numberth call of a function, in whichever process it comes.
BEFORE = """
import gymnasium, os, pandas, time, torch, torch.utils.tensorboard
program = os.getpid()
def before(*args, function={function}, calls=[], **options):
    calls.append(1)
    if len(calls) == {number}:
        open("{folder}/now", "w").close()
        {action}
    return function(*args, **options)
{function} = before
"""
SHORT = """
import functools, gymnasium, os
gymnasium.make = functools.partial(gymnasium.make, max_episode_steps=50)
"""


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not (result := condition()):
        assert time.time() < deadline
        time.sleep(0.02)
    return result


class Process:
    """A program that runs as in a shell of its own: it leads a session and a group. Code can run
    before it, and something can happen in a moment (function, number, action), as in BEFORE."""

    def __init__(self, nursery, folder, program, args, before="", moment=None):
        self.folder = folder
        folder.mkdir()
        if moment:
            function, number, action = moment
            before += BEFORE.format(**locals())
        job = [str(folder), before, [program.__file__, *args]]
        nursery.stdin.write(json.dumps(job) + "\n")
        nursery.stdin.flush()
        self.pid = int(wait_for(lambda: self.text("pid")))

    def text(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def alive(self):
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def end(self, seconds=20):
        """Exit code, output and errors of the program, which must end and leave no process."""
        try:
            code = int(wait_for(lambda: self.text("code"), seconds))
            wait_for(lambda: not self.alive(), 5)
        finally:
            if self.alive():
                os.killpg(self.pid, signal.SIGKILL)
        return code, self.text("stdout"), self.text("stderr")


@pytest.fixture(scope="module")
def start():
    """start(folder, program, args, before) starts a Process."""
    command_line = [sys.executable, "-c", NURSERY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # more threads round otherwise
    environment.pop("MUJOCO_GL", None)
    options = {"stdin": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    with subprocess.Popen(command_line, **options) as nursery:
        yield functools.partial(Process, nursery)
        nursery.stdin.close()


# What is waited for in which call, counted per process.
LOADING = ("gymnasium.make", 1, "time.sleep(60)")
STARTING = ("gymnasium.make", 2, "time.sleep(1)")  # the one that says what the others are like
STARTING_ENVIRONMENTS = ("gymnasium.make", 3, "time.sleep(1)")
TRAINING = ("torch.optim.Adam.step", 25, "time.sleep(60)")
EVALUATION = ("gymnasium.wrappers.TimeLimit.step", 70, "time.sleep(60)")  # the second one
HANGING = ("gymnasium.wrappers.TimeLimit.step", 70, "os.kill(os.getpid(), 19)")  # SIGSTOP
CSV = ("pandas.DataFrame.to_csv", 2, "")
SAVED = ("torch.utils.tensorboard.SummaryWriter.flush", 6, "")  # of the last update
RENAMING, RENAMING_AGAIN = ("os.replace", 1, ""), ("os.replace", 3, "")
ALONE, GROUP = os.kill, os.killpg
FLAGS = ["--steps", 40, "--checkpoint-interval", 7]



@pytest.mark.slow
@pytest.mark.parametrize("program, moment, number, send", [
    (drol, LOADING, signal.SIGINT, ALONE),
    (fql, LOADING, signal.SIGTERM, GROUP),
    (fql, STARTING, signal.SIGINT, GROUP),
    (drol, STARTING, signal.SIGTERM, ALONE),
    (drol, STARTING_ENVIRONMENTS, signal.SIGINT, GROUP),
    (drol, STARTING_ENVIRONMENTS, signal.SIGTERM, GROUP),
    (fql, STARTING_ENVIRONMENTS, signal.SIGTERM, ALONE),
    (drol, TRAINING, signal.SIGTERM, ALONE),
    (fql, TRAINING, signal.SIGINT, GROUP),
    (fql, EVALUATION, signal.SIGINT, GROUP),
    (drol, EVALUATION, signal.SIGTERM, GROUP),
    (drol, HANGING, signal.SIGINT, GROUP),
    (fql, HANGING, signal.SIGTERM, ALONE),
    (drol, TRAINING, signal.SIGKILL, None),
    (fql, EVALUATION, signal.SIGKILL, None),
    (drol, CSV, signal.SIGKILL, None),
    (drol, SAVED, signal.SIGKILL, None),
    (drol, RENAMING, signal.SIGKILL, None),
    (fql, RENAMING_AGAIN, signal.SIGKILL, None),
])  # fmt: skip
def test_stopped_or_killed_and_the_same_command_goes_on(
    start, shared, data_dir, tmp_path, short_episodes, program, moment, number, send
):
    """To the numbers of a run that nobody disturbed."""
    args = command(data_dir, tmp_path / "runs", *FLAGS)
    function, call, action = moment
    if number == signal.SIGKILL:
        action = "os.kill(program, 9)"  # at once
    process = start(tmp_path / "process", program, args, SHORT, (function, call, action))
    if number == signal.SIGKILL:
        assert process.end()[0] == -9
    else:
        wait_for((process.folder / "now").exists)
        time.sleep(0.1 if moment is STARTING_ENVIRONMENTS else 0)  # until the last is forked
        send(process.pid, number)
        code, out, err = process.end()
        last = "stopped; the same command, without --overwrite, resumes the run"
        assert (code, out.splitlines()[-1], err) == (130, last, "")
    for checkpoint in (tmp_path / "runs").glob("*/*/*/checkpoint.pt"):
        saved = torch.load(checkpoint, weights_only=True)  # it is whole
        assert saved["step"] in (7, 14, 21, 28, 35, 40)
    program.main(args)
    run = run_of(tmp_path / "runs")
    undisturbed = lambda folder: program.main(command(data_dir, folder, *FLAGS))
    same_run(run, run_of(shared(f"undisturbed-{program.ALGORITHM}", undisturbed)))
    tensorboard_is_the_csv_files(run)


@pytest.mark.slow
@pytest.mark.parametrize("flags, moment, cause", [
    (["--hidden-dims", 3_000_000, 3_000_000], None, "can't allocate memory"),
    ([], (*TRAINING[:2], "raise KeyError('a fault')"), "KeyError: 'a fault'"),
    ([], (*EVALUATION[:2], "raise ValueError('a fault')"), "ValueError: a fault"),
    ([], (*EVALUATION[:2], "os._exit(9)"), "EOFError"),
])  # fmt: skip
def test_whatever_is_raised_ends_the_environments(start, data_dir, tmp_path, flags, moment, cause):
    """And is the last thing that is printed."""
    args = command(data_dir, tmp_path / "runs", *FLAGS, *flags)
    code, out, err = start(tmp_path / "process", drol, args, SHORT, moment).end()
    assert code == 1 and cause in err.splitlines()[-1], err


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "250k"])  # full at the first record, at a checkpoint
def test_a_full_disk_ends_the_environments(start, data_dir, tmp_path, size):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        args = command(data_dir, tmp_path / "disk", *FLAGS, "--hidden-dims", 128, 128)
        code, out, err = start(tmp_path / "process", drol, args, SHORT).end()
        assert not list((tmp_path / "disk").glob("*/*/*/checkpoint.pt"))
        assert code == 1 and "No space left" in err.splitlines()[-1], err


def test_a_run_that_another_process_trains_is_told(start, data_dir, tmp_path):
    args = command(data_dir, tmp_path)
    _, folder = fql.resolve(fql.tyro.cli(fql.Args, args=args))
    folder.parent.mkdir(parents=True)
    with filelock.FileLock(f"{folder}.lock"):
        end = start(tmp_path / "process", fql, args).end()
    assert end[0] == 1 and end[2] == f"error: another process is training this run: {folder}.lock\n"


def test_nothing_is_asked_to_draw(start, data_dir, tmp_path):
    before = SHORT + "os.environ['MUJOCO_GL'] = 'egl'"  # as clusters set it, with or without one
    code, out, err = start(tmp_path / "process", fql, command(data_dir, tmp_path), before).end()
    assert (code, err) == (0, "") and "update 20: score" in out


@pytest.mark.slow
def test_the_console_of_a_new_user(data_dir, tmp_path):
    """In a terminal of 100 columns: no line is broken, no library warns."""
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    environment |= {"COLUMNS": "100", "MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, drol.__file__, *command(data_dir, tmp_path)]
    ran = subprocess.run(command_line, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.replace(str(data_dir), "data").splitlines()
    assert 25 <= len(lines) <= 40
    # a path is not broken: it is there to be copied
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100

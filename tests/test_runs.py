"""Tests of runs: their folders, records and checkpoints, going on, stopping, being killed."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drol
import fql
from tests import fake
from tests.helpers import (
    ROOT,
    command,
    every_program,
    mounted,
    read,
    refused,
    run_of,
    same_weights,
    saved,
    steps_of,
    wait_for,
)


def same_run(a, b):
    """Two runs have the same weights and records, bit for bit."""
    assert same_weights(a, b)
    for name in ("eval", "train"):
        assert (a / f"{name}.csv").read_bytes() == (b / f"{name}.csv").read_bytes()


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
def test_what_a_run_leaves(program, capsys, corridor_run):
    run = corridor_run(program, "runs", "--eval-interval", 5)
    assert run.parts[-3] == fake.NAME
    assert steps_of(run) == [5, 10, 15, 20] and steps_of(run, "train") == [10, 20]
    own = ["bc_loss", "candidate_spread"] if program is drol else ["flow_loss", "distill_loss"]
    for row in read(run / "train.csv"):
        assert {"critic_loss", "q_data", "actor_loss", "q_loss", "q", "mse", *own} <= row.keys()
        assert all(math.isfinite(float(value)) for value in row.values())
        assert all(0 < float(row[name]) < 10 for name in ["mse", *own])
    # no clock times: comparable bit for bit
    assert list(read(run / "eval.csv")[0]) == ["step", "score", "return"]
    tensorboard_is_the_csv_files(run)
    config = json.loads((run / "config.json").read_text())
    assert (config["algorithm"], config["env_id"]) == (program.ALGORITHM, fake.NAME)
    assert config["versions"]["torch"] == drol.version("torch")
    assert (config["steps"], config["discount"], config["hidden_dims"]) == (20, 0.99, [16, 16])
    assert config["dataset"].startswith("100 transitions")
    scores = [float(row["score"]) for row in read(run / "eval.csv")]
    assert f"score {scores[-1]:.1f}" in capsys.readouterr().out.splitlines()[-1]


# --------------------------------------------------------------------------------------- going on


@every_program
def test_more_steps_continue_a_run_as_if_it_had_not_been_left(program, corridor_run, tmp_path):
    """With other intervals of logs and checkpoints too: they change no number. An evaluation at a
    former end, here 25, is none of the longer run. Fewer steps than there are is refused."""
    flags, more = ["--eval-interval", 10, "--steps"], ["--checkpoint-interval", 7]
    parts = corridor_run(program, "parts", *flags, 25)
    assert steps_of(parts) == [10, 20, 25]
    corridor_run(program, "parts", *flags, 40, *more)
    whole = corridor_run(program, "whole", *flags, 40)
    same_run(parts, whole)
    assert steps_of(parts, "train") == steps_of(parts) == [10, 20, 30, 40]
    corridor_run(program, "parts", *flags, 40)  # finished: nothing changes
    same_run(parts, whole)
    tensorboard_is_the_csv_files(whole)
    args = command(None, tmp_path / "parts", *flags, 20, program=program)
    refused(program, args, parts, "40", "--steps")
    same_run(parts, whole)
    assert not same_weights(parts, corridor_run(program, "other", *flags, 40, "--seed", 1))


@every_program
def test_what_a_copier_adds_is_resumed(program, corridor_run, monkeypatch):
    """A network, noise from the place where noise is drawn, a loss and a metric."""
    make_networks, sample_noise = program.make_networks, program.sample_noise
    total_loss = program.total_loss

    def more_networks(observation_dim, action_dim, hidden_dims, generator):
        networks = make_networks(observation_dim, action_dim, hidden_dims, generator)
        networks["more"] = program.MLP(observation_dim, hidden_dims, action_dim, generator)
        return networks

    def more_noise(args, action_dim, generator):
        noise = sample_noise(args, action_dim, generator)
        more = torch.randn(args.batch_size, action_dim, generator=generator)
        return noise | {"more": more}

    def more_loss(networks, batch, noise, args):
        loss, metrics = total_loss(networks, batch, noise, args)
        more = (networks["more"](batch["observations"]) - noise["more"]).square().mean()
        return loss + more, metrics | {"more": more.detach()}

    monkeypatch.setattr(program, "make_networks", more_networks)
    monkeypatch.setattr(program, "sample_noise", more_noise)
    update = program.update
    monkeypatch.setattr(program, "update", lambda *parts: update(*parts[:5], more_loss))
    whole = corridor_run(program, "whole", "--steps", 40)
    corridor_run(program, "parts")
    same_run(corridor_run(program, "parts", "--steps", 40), whole)
    assert all(float(row["more"]) > 0 for row in read(whole / "train.csv"))


@every_program
def test_a_metric_that_is_added_before_resuming(program, corridor_run, monkeypatch):
    """The files stay tables: a column more, empty in the rows before. Any scalar will do."""
    run = corridor_run(program, "runs")
    evaluate, update = program.evaluate, program.update
    monkeypatch.setattr(program, "evaluate", lambda *x: {"first": np.float32(0.5)} | evaluate(*x))
    monkeypatch.setattr(program, "update", lambda *x: {"first": torch.tensor(0.5)} | update(*x))
    corridor_run(program, "runs", "--steps", 40)
    corridor_run(program, "runs", "--steps", 60)  # its checkpoint can be read
    for name, column, old, new in (("eval", "score", 1, 2), ("train", "q", 2, 4)):
        rows = read(run / f"{name}.csv")
        assert [row["first"] for row in rows] == [""] * old + ["0.5"] * new
        assert all(math.isfinite(float(row[column])) for row in rows)


@every_program
def test_the_data_of_a_run_may_move_and_not_change(program, corridor_run, tmp_path):
    folders = [tmp_path / name for name in ("scratch1", "scratch2")]
    for folder in folders:
        folder.mkdir()
        np.savez(folder / "arrays.npz", **fake.made_up_data())
    run = corridor_run(program, "runs", "--data-dir", folders[0])
    corridor_run(program, "runs", "--data-dir", folders[1], "--steps", 40)
    assert saved(run)["step"] == 40
    rewards = fake.made_up_data()["rewards"]
    for other in (
        fake.made_up_data(101),
        fake.made_up_data() | {"rewards": np.r_[rewards[0], 9, rewards[2:]]},
        {key: x[::-1] for key, x in fake.made_up_data().items()},
    ):
        np.savez(folders[1] / "arrays.npz", **other)
        flags = ["--data-dir", folders[1], "--steps", 60]
        args = command(None, tmp_path / "runs", *flags, program=program)
        refused(program, args, run, "transitions", "--exp-name")


@pytest.mark.parametrize("size", [0, 1000])
def test_a_checkpoint_that_is_none_is_told(corridor_run, tmp_path, size):
    run = corridor_run(drol, "runs")
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:size])
    args = command(None, tmp_path / "runs", "--steps", 40, "--lr", 0.1, program=drol)
    refused(drol, args, path, "--exp-name")
    path.unlink()
    drol.main(args)  # starts anew
    assert steps_of(run, "train") == [10, 20, 30, 40]
    for folder in (path, "~nobody-here"):  # a file, and nobody's home
        refused(drol, command(None, folder, program=drol), "--run-dir")
    if not torch.cuda.is_available():
        refused(drol, command(None, tmp_path, "--device", "cuda", program=drol), "--device")


# ----------------------------------------------------------------------- checkpoints and policies


@every_program
def test_training_that_diverges_ends_the_run(program, corridor_run, tmp_path):
    """Its last good checkpoint stays, and is finite."""
    flags = ["--checkpoint-interval", 1, "--lr", 1e20]
    run = corridor_run(program, "runs", *flags, "--steps", 1)
    args = command(None, tmp_path / "runs", *flags, "--steps", 40, program=program)
    refused(program, args, "--exp-name", "--lr")
    content = saved(run)
    assert content["step"] >= 1
    assert all(value.isfinite().all() for value in content["networks"].values())


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
    other = fql if program is drol else drol
    with pytest.raises(ValueError, match=f"{program.ALGORITHM}.py"):
        other.load_policy(checkpoint)
    for path in (ROOT / "results" / "reproduction").glob(f"*{program.ALGORITHM}*.pt"):
        dims = torch.load(path, weights_only=True)["dims"]  # of the actor alone
        assert program.load_policy(path)(np.zeros((3, dims[0]))).shape == (3, dims[1])


def test_a_lock_is_of_all_users(corridor_run):
    """Whatever the umask of the first. A second process stays out until the lock is free."""
    before = os.umask(0o077)
    try:
        run = corridor_run(drol, "runs")
    finally:
        os.umask(before)
    lock = Path(f"{run}.lock")
    assert lock.stat().st_mode & 0o777 == 0o666
    with filelock.FileLock(lock), pytest.raises(SystemExit, match="another process .*seed0.lock"):
        corridor_run(drol, "runs", "--steps", 40)
    assert steps_of(run) == [20]
    corridor_run(drol, "runs", "--steps", 40)
    assert steps_of(run) == [20, 40]


# ------------------------------------------------------------ programs in processes of their own

# Runs a program. Before the numberth call of a function, in whichever process that comes, it makes
# a file and does something.
START = """
import os, runpy, sys, time, {module}
program = os.getpid()
def before(*args, function={function}, calls=[], **options):
    calls.append(1)
    if len(calls) == {number}:
        open({flag!r}, "w").close()
        {action}
    return function(*args, **options)
{function} = before
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NOWHERE = ("os", "os.getcwd", 0, "")
LOADING = ("tests.fake", "tests.fake.made_up_data", 1, "time.sleep(60)")
STARTING = ("tests.fake", "tests.fake.Corridor.__init__", 4, "time.sleep(1)")  # of each process
TRAINING = ("torch", "torch.optim.Adam.step", 25, "time.sleep(60)")
EVALUATION = ("tests.fake", "tests.fake.Corridor.step", 4, "time.sleep(60)")
HANGING = (*EVALUATION[:3], "os.kill(os.getpid(), 19)")  # SIGSTOP
CSV = ("pandas", "pandas.DataFrame.to_csv", 2, "")
RENAMING, RENAMING_AGAIN = ("os", "os.replace", 1, ""), ("os", "os.replace", 3, "")
ALONE, GROUP, KILL = os.kill, os.killpg, None
FLAGS = ["--steps", 40, "--checkpoint-interval", 7]


class Process:
    """A program that runs as in a shell of its own: it leads a session and a group."""

    def __init__(self, program, args, flag, moment=NOWHERE, options=()):
        module, function, number, action = moment
        code = START.format(**locals())
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", code, program.__file__, *args],
            env=environment, cwd=ROOT, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def alive(self):
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def end(self):
        """Exit code, output and errors of the program, which must end and leave no process."""
        try:
            out, err = self.process.communicate(timeout=60)
            wait_for(lambda: not self.alive(), 5)
        finally:
            if self.alive():
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, out, err


slow = lambda *case: pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize("program, moment, number, send", [
    slow(drol, LOADING, signal.SIGINT, ALONE),
    slow(fql, STARTING, signal.SIGINT, GROUP),
    slow(drol, STARTING, signal.SIGTERM, ALONE),
    slow(drol, TRAINING, signal.SIGTERM, ALONE),
    slow(fql, TRAINING, signal.SIGINT, GROUP),
    (drol, EVALUATION, signal.SIGTERM, GROUP),
    slow(drol, HANGING, signal.SIGINT, GROUP),
    slow(fql, HANGING, signal.SIGTERM, ALONE),
    (drol, TRAINING, signal.SIGKILL, KILL),
    (fql, EVALUATION, signal.SIGKILL, KILL),
    slow(drol, CSV, signal.SIGKILL, KILL),
    slow(drol, RENAMING, signal.SIGKILL, KILL),
    slow(fql, RENAMING_AGAIN, signal.SIGKILL, KILL),
])  # fmt: skip
def test_stopped_or_killed_and_the_same_command_goes_on(
    corridor_run, tmp_path, program, moment, number, send
):
    """To the numbers of a run that nobody disturbed."""
    args, flag = command(None, tmp_path / "runs", *FLAGS, program=program), tmp_path / "now"
    if send is KILL:  # at once
        moment = (*moment[:3], "os.kill(program, 9)")
        assert Process(program, args, str(flag), moment).end()[0] == -9
    else:
        process = Process(program, args, str(flag), moment)
        wait_for(flag.exists)
        send(process.process.pid, number)
        code, out, err = process.end()
        assert (code, err) == (130, "")
        assert out.splitlines()[-1].startswith("stopped; the same command")
    for checkpoint in (tmp_path / "runs").glob("*/*/*/checkpoint.pt"):
        assert saved(checkpoint.parent)["step"] in (7, 14, 20, 21, 28, 35, 40)  # it is whole
    time.sleep(1)  # TensorBoard reads event files in the order of the second in their names
    same_run(corridor_run(program, "runs", *FLAGS), corridor_run(program, "whole", *FLAGS))
    tensorboard_is_the_csv_files(run_of(tmp_path / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("action, cause", [
    ("raise ValueError('a fault')", "ValueError: a fault"), ("os._exit(9)", "EOFError"),
])  # fmt: skip
def test_whatever_is_raised_ends_the_environments(tmp_path, action, cause):
    """And keeps its traceback."""
    args = command(None, tmp_path / "runs", *FLAGS, program=drol)
    code, _, err = Process(drol, args, str(tmp_path / "now"), (*EVALUATION[:3], action)).end()
    assert code == 1 and cause in err.splitlines()[-1], err


@pytest.mark.slow
def test_a_full_disk_ends_the_environments(tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=250k", "tmpfs"):
        flags = [*FLAGS, "--hidden-dims", 128, 128]
        args = command(None, tmp_path / "disk", *flags, program=drol)
        code, _, err = Process(drol, args, str(tmp_path / "now")).end()
        assert not list((tmp_path / "disk").glob("*/*/*/checkpoint.pt"))
        assert code == 1 and "No space left" in err.splitlines()[-1], err


def test_without_docstrings_and_asserts(tmp_path):
    """python -OO; and a run that another process trains is told."""
    args, flag = command(None, tmp_path, program=fql), str(tmp_path / "now")
    assert Process(fql, args, flag, options=["-OO"]).end()[::2] == (0, "")
    run = run_of(tmp_path)
    with filelock.FileLock(f"{run}.lock"):
        code, _, err = Process(fql, args, flag, options=["-OO"]).end()
    assert code == 1 and re.fullmatch(f"error: no lock: .*{run}.lock.*\n", err)
    code = f"import drol; drol.load_policy('{run}/checkpoint.pt')"
    ran = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, cwd=ROOT)
    assert b"ValueError" in ran.stderr


@pytest.mark.slow
def test_the_console_of_a_new_user(data_dir, tmp_path, monkeypatch):
    """No library warns, nothing is asked to draw, and no line is broken in 100 columns."""
    monkeypatch.setenv("MUJOCO_GL", "egl")  # as clusters set it, with or without one
    monkeypatch.delenv("DISPLAY", raising=False)
    args = command(data_dir, tmp_path, env_id="pointmaze-medium", program=drol)
    code, out, err = Process(drol, args, str(tmp_path / "now")).end()
    assert (code, err) == (0, "") and "update 20: score" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path.parent) not in line) <= 100

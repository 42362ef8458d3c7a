"""Tests of runs: their folders, records and checkpoints, going on, stopping, being killed."""

import functools
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from types import ModuleType

import filelock
import numpy as np
import ogbench
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drol
import fql
from tests.corridor import install, train
from tests.helpers import command, every_program, read, refused, run_of, same_weights


@pytest.fixture
def short_episodes(monkeypatch):
    """Episodes of 20 steps, from the call on."""

    def shorten():
        make = functools.partial(ogbench.make_env_and_datasets, max_episode_steps=20)
        monkeypatch.setattr(ogbench, "make_env_and_datasets", make)

    return shorten


@pytest.fixture
def done(finished, short_episodes):
    """done(program) is finished(program), after which episodes are short."""

    def copy(program=drol):
        folder = finished(program)
        short_episodes()
        return folder

    return copy


def steps_of(run, name="eval"):
    return [int(row["step"]) for row in read(run / f"{name}.csv")]


def without_rates(path):
    return [row | {"updates_per_second": ""} for row in read(path)]


# -------------------------------------------------------------------------------- what it leaves


@every_program
def test_what_a_run_prints_and_leaves(program, capsys, data_dir, tmp_path, short_episodes):
    short_episodes()
    flags = ["--snapshot-interval", 10, "--eval-interval", 5]
    program.main(command(data_dir, tmp_path, *flags))
    out = capsys.readouterr().out
    run = run_of(tmp_path)
    assert steps_of(run) == [5, 10, 15, 20] and steps_of(run, "train") == [10, 20]
    for row in read(run / "train.csv"):
        assert all(np.isfinite(float(value)) for value in row.values())
        assert float(row["updates_per_second"]) > 0
        assert 0 < float(row["bc_loss" if program is drol else "flow_loss"]) < 10
        assert 0 < float(row["mse"]) < 4 and -100 < float(row["q"]) < 100
    columns = ["step", "score", "return", "return_std", "length"]
    assert list(read(run / "eval.csv")[0]) == columns  # no clock times: comparable bit for bit
    config = json.loads((run / "config.json").read_text())
    assert config["algorithm"] == program.ALGORITHM
    assert config["settings"]["steps"] == 20 and config["origin"]["steps"] == "command line"
    assert config["data"]["transitions"] == 2000
    assert config["env"]["name"] == "pointmaze-medium-navigate-singletask-task1-v0"
    assert (config["env"]["dataset"], config["env"]["task"]) == ("pointmaze-medium-navigate-v0", 1)
    assert config["versions"]["mujoco"] == drol.version("mujoco")
    assert sorted(path.name for path in run.glob("snap*")) == ["snapshot10.pt", "snapshot20.pt"]
    snapshots = [torch.load(run / f"snapshot{n}.pt", weights_only=True) for n in (10, 20)]
    assert [saved["step"] for saved in snapshots] == [10, 20]
    final = torch.load(run / "checkpoint.pt", weights_only=True)["networks"]
    same = [[torch.equal(final[x], saved["networks"][x]) for x in final] for saved in snapshots]
    assert not all(same[0]) and all(same[1])
    scores = [float(row["score"]) for row in read(run / "eval.csv")]
    assert f"score {np.mean(scores[-3:]):.1f}, the mean of 3" in out
    for text in (str(run), f"tools/rollout.py {run}/checkpoint.pt", "collected locally", "2000"):
        assert text in out


def test_tensorboard_shows_what_the_csv_files_hold(done):
    run = done()
    events = EventAccumulator(str(run)).Reload()
    for name in ("train", "eval"):
        for row in read(run / f"{name}.csv"):
            for key, value in row.items():
                if key != "step":
                    points = {x.step: x.value for x in events.Scalars(f"{name}/{key}")}
                    assert points[int(row["step"])] == pytest.approx(float(value), rel=1e-5)
    (text,) = events.Tensors("hyperparameters/text_summary")
    assert "|bc_coef|0.3|" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("task, expected", [(2, "36.7, the mean of 3"), (None, "60.0")])
def test_the_final_score_is_the_papers(capsys, tmp_path, task, expected):
    """OGBench: the mean of the last three evaluations; D4RL: the last one."""
    rows = [{"score": s, "step": n} for n, s in enumerate((90.0, 20.0, 30.0, 60.0), 997)]
    drol.print_score(tmp_path, drol.Task("name", "dataset", task, "family", "folder"), rows)
    out = capsys.readouterr().out
    assert f"score {expected}" in out and "up to update 1,000" in out


@pytest.mark.parametrize("program, settings, folder", [
    (drol, {}, "drol-k16"),
    (drol, {"k": 4}, "drol-k4"),
    (drol, {"bc_coef": 10.0, "lr": 3e-4, "discount": 0.99}, "drol-k16"),  # as published
    (drol, {"k": 4, "lr": 1e-3, "hidden_dims": (128,) * 3}, "drol-k4-lr0.001-hidden_dims128x3"),
    (drol, {"bc_coef": 0.3, "normalize_q": False}, "drol-k16-bc_coef0.3-normalize_qFalse"),
    (drol, {"steps": 10, "eval_interval": 5, "device": "cpu", "log_interval": 1}, "drol-k16"),
    (fql, {}, "fql"),
    (fql, {"alpha": 300.0}, "fql"),
    (fql, {"flow_steps": 5, "tau": 0.01}, "fql-flow_steps5-tau0.01"),
])  # fmt: skip
def test_a_runs_folder_says_what_was_not_standard(tmp_path, program, settings, folder):
    args = program.Args(env_id="cube-single", run_dir=tmp_path, seed=3, **settings)
    task, _ = program.resolve(args, set(settings))
    expected = tmp_path / "cube-single-play-task2" / folder / "seed3"
    assert program.run_folder(args, task) == expected


@every_program
def test_every_setting_that_changes_the_result_has_its_own_folder(program, tmp_path):
    changes = {"discount": 0.9, "q_agg": "min", "batch_size": 8, "lr": 1e-3, "tau": 0.1,
               "hidden_dims": (8, 8), "seed": 1, "task": 3}  # fmt: skip
    if program is drol:
        changes |= {"k": 4, "bc_coef": 1.0, "actor_q_agg": "mean", "normalize_q": False,
                    "routing_dtype": "bfloat16"}  # fmt: skip
    else:
        changes |= {"alpha": 1.0, "flow_steps": 2, "actor_q_agg": "min", "normalize_q": True}
    folders = set()
    for settings in [{}, *({name: value} for name, value in changes.items())]:
        args = program.Args(env_id="cube-single", run_dir=tmp_path, **settings)
        task, _ = program.resolve(args, set(settings))
        folders.add(program.run_folder(args, task))
    assert len(folders) == 1 + len(changes)


def test_a_runs_folder_of_d4rl():
    args = drol.Args(env_id="door-expert-v1")
    task, _ = drol.resolve(args, set())
    assert drol.run_folder(args, task).parts[-4:] == ("runs", "door-expert-v1", "drol-k16", "seed0")


def test_a_runs_folder_writes_whole_numbers_without_a_fraction(tmp_path):
    args = fql.Args(env_id="cube-single", alpha=100.0)
    task, _ = fql.resolve(args, {"alpha"})
    assert fql.run_folder(args, task).parent.name == "fql-alpha100"


# -------------------------------------------------------------------------------------- randomness


def recorded(monkeypatch, folder, **settings):
    """The batch and the noise of every update of a run, and its first networks."""
    updates, update = [], drol.update

    def note(networks, optimizer, batch, noise, args, losses):
        if not updates:
            updates.append({k: v.clone() for k, v in networks.state_dict().items()})
        updates.append({k: v.clone() for k, v in (batch | noise).items()})
        return update(networks, optimizer, batch, noise, args, losses)

    with monkeypatch.context() as patch:
        patch.setattr(drol, "update", note)
        train(folder, **settings)
    return updates


def test_batches_noise_and_networks_are_of_the_runs_seed(monkeypatch, tmp_path):
    install(monkeypatch)
    first = recorded(monkeypatch, tmp_path / "a")
    again = recorded(monkeypatch, tmp_path / "b", eval_interval=1, log_interval=1)
    other = recorded(monkeypatch, tmp_path / "c", seed=1)
    for ours, same in zip(first, again, strict=True):
        for name in ours:
            assert torch.equal(ours[name], same[name]), name
    weight = "actor.layers.0.weight"
    assert not torch.equal(first[0][weight], other[0][weight])
    everything = first[1:] + other[1:]  # of 4 updates each
    for name in ("observations", "latents", "next_latents"):
        drawn = [tuple(update[name].flatten().tolist()) for update in everything]
        assert len(set(drawn)) == 8, name


def test_each_purpose_has_a_generator_of_its_own(monkeypatch, tmp_path):
    """Else batches and noise would be made of the same numbers."""
    install(monkeypatch)
    seeds, make = [], drol.make_generator

    def note(device, *key):
        generator = make(device, *key)
        if len(key) in (2, 3):  # of a run; of an episode it has four parts
            seeds.append(generator.initial_seed())
        return generator

    monkeypatch.setattr(drol, "make_generator", note)
    for seed in (0, 1):
        train(tmp_path / str(seed), seed=seed, eval_interval=2)
    # networks, batches, noise, and the policy of each of two evaluations
    assert len(seeds) == len(set(seeds)) == 2 * 5


def test_the_same_seed_is_the_same_run_and_another_is_not(done, data_dir, tmp_path):
    first = done()
    for seed in (0, 1):
        drol.main(command(data_dir, tmp_path / str(seed), "--seed", seed))
    assert same_weights(first, run_of(tmp_path / "0"))
    assert not same_weights(first, run_of(tmp_path / "1"))


def test_evaluating_and_logging_more_often_changes_no_weight(done, data_dir, tmp_path):
    run = done()
    flags = ["--eval-interval", 2, "--log-interval", 2, "--eval-episodes", 1]
    drol.main(command(data_dir, tmp_path / "often", *flags))
    often = run_of(tmp_path / "often")
    assert len(steps_of(often)) == len(steps_of(often, "train")) == 10
    assert same_weights(run, often)


# ---------------------------------------------------------------------------------------- going on


@every_program
def test_more_steps_continue_a_run_as_if_it_had_not_been_left(
    program, capsys, data_dir, tmp_path, short_episodes
):
    short_episodes()
    more = ["--steps", 40, "--checkpoint-interval", 7]
    program.main(command(data_dir, tmp_path / "parts"))
    capsys.readouterr()
    program.main(command(data_dir, tmp_path / "parts", *more))
    assert "resumed at update 20" in capsys.readouterr().out
    program.main(command(data_dir, tmp_path / "whole", *more))
    assert "resumed" not in capsys.readouterr().out
    parts, whole = run_of(tmp_path / "parts"), run_of(tmp_path / "whole")
    assert same_weights(parts, whole)
    assert (parts / "eval.csv").read_bytes() == (whole / "eval.csv").read_bytes()
    assert without_rates(parts / "train.csv") == without_rates(whole / "train.csv")
    assert steps_of(parts, "train") == [10, 20, 30, 40] and steps_of(parts) == [20, 40]


def test_an_evaluation_of_fewer_steps_is_not_one_of_more(monkeypatch, tmp_path):
    """A run of 5 updates evaluates at its end; one of 8 that goes on from it does not at 5."""
    install(monkeypatch)
    train(tmp_path / "parts", steps=5, eval_interval=2)
    train(tmp_path / "parts", steps=8, eval_interval=2)
    train(tmp_path / "whole", steps=8, eval_interval=2)
    parts, whole = ((tmp_path / x / "eval.csv").read_bytes() for x in ("parts", "whole"))
    assert parts == whole and steps_of(tmp_path / "parts") == [2, 4, 6, 8]


def test_the_records_of_a_run_whose_checkpoint_is_gone_go_too(done, data_dir, tmp_path):
    """Else the folder looks like a finished run until the new one's first evaluation."""
    run = done()
    (run / "checkpoint.pt").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drol, "train", lambda *args: [{"score": 0.0, "step": 20}])
        drol.main(command(data_dir, tmp_path / "runs"))
    assert not (run / "eval.csv").exists() and not (run / "train.csv").exists()


def test_a_folder_that_cannot_be_deleted_is_told(done, data_dir, tmp_path):
    run = done()
    run.rename(tmp_path / "elsewhere")
    run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        drol.main(command(data_dir, tmp_path / "runs", "--overwrite"))
    assert steps_of(tmp_path / "elsewhere") == [20]


def test_ctrl_c_is_the_callers_again_after_a_run(monkeypatch, tmp_path):
    install(monkeypatch)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    train(tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_of_the_evaluation_that_dies_is_told(data_dir, tmp_path, number):
    """As where memory is short. The run is saved, and nothing hangs."""
    flags = ["--steps", 400, "--eval-interval", 200, "--checkpoint-interval", 1_000_000]
    args = command(data_dir, tmp_path / "died", *flags)
    process = start(drol, args)
    rows = lambda: [row for path in tmp_path.glob("*/*/*/*/train.csv") for row in read(path)]
    wait_for(lambda: len(rows()) >= 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[number]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "stopped at update 200 and saved" in out, (out, err)
    at = torch.load(run_of(tmp_path / "died") / "checkpoint.pt", weights_only=True)["step"]
    assert at == 200
    drol.main(args)
    drol.main(command(data_dir, tmp_path / "whole", *flags))
    assert same_weights(run_of(tmp_path / "died"), run_of(tmp_path / "whole"))


@every_program
def test_a_finished_run_says_so_before_data_is_loaded(program, capsys, done, tmp_path):
    run = done(program)
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    program.main(command(tmp_path / "no data", tmp_path / "runs"))
    out = capsys.readouterr().out
    assert "finished" in out and f"tools/rollout.py {run}/checkpoint.pt" in out
    assert before == {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert not (tmp_path / "no data").exists()


@pytest.mark.parametrize("flags, words", [
    (["--eval-episodes", 3], ["eval_episodes 2, not 3"]),
    (["--eval-envs", 1], ["eval_envs 2, not 1"]),
    (["--eval-interval", 10], ["eval_interval 20, not 10"]),
    (["--compile", "on"], ["compile off, not on"]),
])  # fmt: skip
def test_another_configuration_is_refused(done, data_dir, tmp_path, flags, words):
    run = done()
    before = {path: path.read_bytes() for path in run.iterdir()}
    args = command(data_dir, tmp_path / "runs", "--steps", 40)
    refused(drol, [*args, *map(str, flags)], run, *words, "--overwrite", "--run-dir")
    assert before == {path: path.read_bytes() for path in run.iterdir()}


def test_other_data_is_refused(done, data_dir, tmp_path):
    run = done()
    (tmp_path / "other").mkdir()
    for path in data_dir.glob("*.npz"):
        arrays = dict(np.load(path))
        arrays["observations"][0, 0] += 1
        np.savez(tmp_path / "other" / path.name, **arrays)
    args = command(tmp_path / "other", tmp_path / "runs", "--steps", 40)
    refused(drol, args, run, "fingerprint", "--overwrite")
    assert steps_of(run) == [20]
    drol.main([*args, "--overwrite"])
    assert steps_of(run) == [20, 40]


def test_what_does_not_change_the_result_may_change(done, data_dir, tmp_path):
    run = done()
    flags = ["--log-interval", 5, "--checkpoint-interval", 3, "--snapshot-interval", 30]
    drol.main(command(data_dir, tmp_path / "runs", "--steps", 40, *flags))
    assert steps_of(run, "train") == [10, 20, 25, 30, 35, 40]
    assert (run / "snapshot30.pt").exists()


def test_overwrite_starts_anew(capsys, done, data_dir, tmp_path):
    run = done()
    (run / "notes.txt").write_text("old")
    first = torch.load(run / "checkpoint.pt", weights_only=True)["networks"]
    drol.main(command(data_dir, tmp_path / "runs", "--steps", 10, "--overwrite"))
    assert "resumed" not in capsys.readouterr().out
    assert not (run / "notes.txt").exists() and steps_of(run) == [10]
    anew = torch.load(run / "checkpoint.pt", weights_only=True)["networks"]
    assert not all(torch.equal(first[name], anew[name]) for name in first)


def test_a_damaged_checkpoint_is_told_and_left(done, data_dir, tmp_path):
    run = done()
    whole = (run / "checkpoint.pt").read_bytes()
    half = whole[: len(whole) // 2]
    (run / "checkpoint.pt").write_bytes(half)
    args = command(data_dir, tmp_path / "runs", "--steps", 40)
    refused(drol, args, run / "checkpoint.pt", "--overwrite")
    assert (run / "checkpoint.pt").read_bytes() == half and steps_of(run) == [20]
    (run / "checkpoint.pt").write_bytes(whole)
    drol.main(args)
    assert steps_of(run) == [20, 40]


@every_program
def test_a_checkpoint_of_the_other_program_is_told(program, finished):
    checkpoint = finished(program) / "checkpoint.pt"
    other = fql if program is drol else drol
    with pytest.raises(other.UserError, match=f"is {program.ALGORITHM}.py's"):
        other.load_policy(checkpoint)


def test_a_policy_is_loaded(finished, tmp_path):
    checkpoint = finished(drol) / "checkpoint.pt"
    policy = drol.load_policy(checkpoint, seed=1)
    observation = np.array([0.5, -0.5])
    action = policy(observation)
    assert action.shape == (2,) and action.dtype == np.float32 and np.abs(action).max() <= 1
    assert policy(np.tile(observation, (7, 1))).shape == (7, 2)
    assert not np.array_equal(policy(observation), policy(observation))  # a latent each time
    assert np.array_equal(drol.load_policy(checkpoint, seed=1)(observation), action)
    assert not np.array_equal(drol.load_policy(checkpoint, seed=2)(observation), action)
    with pytest.raises(drol.UserError, match="none.pt"):
        drol.load_policy(tmp_path / "none.pt")
    saved = torch.load(checkpoint, weights_only=True)
    saved["networks"] = {k: x for k, x in saved["networks"].items() if k.startswith("actor.")}
    torch.save(saved, tmp_path / "actor.pt")  # as results/ has one
    assert np.array_equal(drol.load_policy(tmp_path / "actor.pt", seed=1)(observation), action)


# --------------------------------------------------------------------------------- in the way of it


def test_a_checkpoint_is_always_a_whole_one(done, data_dir, tmp_path, monkeypatch):
    def no_space(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    run = done()
    before = (run / "checkpoint.pt").read_bytes()
    args = command(data_dir, tmp_path / "runs", "--steps", 40)
    with monkeypatch.context() as full:
        full.setattr(torch, "save", no_space)
        with pytest.raises(OSError, match="No space left"):
            drol.main(args)
    assert (run / "checkpoint.pt").read_bytes() == before  # the disk was full
    with open(run / "checkpoint.pt", "rb") as reader:
        drol.main(args)
        assert reader.read() == before  # who was reading it has not lost it
    assert steps_of(run) == [20, 40] and (run / "checkpoint.pt").read_bytes() != before


def test_a_run_dir_that_is_a_file_is_left(data_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        drol.main(command(data_dir, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_process_stays_out(done, data_dir, tmp_path):
    run = done()
    before = {path: path.read_bytes() for path in run.iterdir()}
    with filelock.FileLock(f"{run}.lock"), pytest.raises(filelock.Timeout):
        drol.main(command(data_dir, tmp_path / "runs", "--steps", 40, "--overwrite"))
    assert before == {path: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("compile", ["on", "off"])
def test_the_losses_are_compiled_where_it_is_asked_for(monkeypatch, tmp_path, compile):
    install(monkeypatch)
    compiled, used = [], []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    update = drol.update
    monkeypatch.setattr(drol, "update", lambda *args: used.append(args[-1]) or update(*args))
    train(tmp_path, compile=compile)
    assert compiled == [drol.losses] * (compile == "on") and set(used) == {drol.losses}


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_numbers(data_dir, tmp_path, short_episodes):
    short_episodes()
    flags = lambda folder, *more: command(data_dir, tmp_path / folder, "--compile", "on", *more)
    drol.main(flags("whole", "--steps", 40))
    drol.main(flags("parts"))
    drol.main(flags("parts", "--steps", 40))
    whole, parts = run_of(tmp_path / "whole"), run_of(tmp_path / "parts")
    assert same_weights(whole, parts)
    drol.main(command(data_dir, tmp_path / "eager", "--steps", 40))
    eager, compiled = (
        torch.load(run / "checkpoint.pt", weights_only=True)["networks"]
        for run in (run_of(tmp_path / "eager"), whole)
    )
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-5) for name in eager)


def test_tracking_is_handed_to_wandb(monkeypatch, done, data_dir, tmp_path):
    run = done()
    wandb, calls = ModuleType("wandb"), []
    wandb.init = lambda **options: calls.append(options)
    args = command(data_dir, tmp_path / "runs", "--steps", 40, "--track")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(ImportError, match="wandb"):
        drol.main(args)
    assert steps_of(run) == [20]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    drol.main([*args, "--wandb-project-name", "mine", "--wandb-entity", "us"])
    (options,) = calls
    assert (options["project"], options["entity"]) == ("mine", "us")
    assert options["sync_tensorboard"]
    assert options["dir"] == tmp_path / "runs" and options["config"]["steps"] == 40
    assert "pointmaze-medium-navigate-task1" in options["name"] and "seed0" in options["name"]


# ------------------------------------------------------------------------------ a user's console


def exit_of(monkeypatch, *args):
    """What a program says when it ends, as it would in a process of its own."""
    monkeypatch.setattr(sys, "argv", ["drol.py", *map(str, args)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(drol.__file__, run_name="__main__")
    return exit.value.code


@pytest.mark.parametrize("error, words", [
    (urllib.error.URLError("no route"), "no route"),
    (ImportError("pip install what is missing"), "pip install"),
    (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
    (PermissionError(13, "Permission denied", "runs"), "Permission denied: 'runs'"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(monkeypatch, tmp_path, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(ogbench, "make_env_and_datasets", fail)
    message = exit_of(monkeypatch, *command(tmp_path, tmp_path / "runs"))
    assert message.startswith("error: ") and words in message and "\n" not in message


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault")

    monkeypatch.setattr(ogbench, "make_env_and_datasets", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        exit_of(monkeypatch, *command(tmp_path, tmp_path / "runs"))


def test_a_run_that_another_process_writes_is_one_sentence(monkeypatch, data_dir, tmp_path):
    args = command(data_dir, tmp_path)
    task, _ = drol.resolve(settings := drol.tyro.cli(drol.Args, args=args), set())
    folder = drol.run_folder(settings, task)
    folder.parent.mkdir(parents=True)
    with filelock.FileLock(f"{folder}.lock"):
        message = exit_of(monkeypatch, *args)
    assert message.startswith("error: another process holds") and str(folder) in message


def start(program, args, env=os.environ, **options):
    """A process of a program. It computes with one thread, as the tests do: sums over more can
    differ in the last bit."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command_line = [sys.executable, program.__file__, *args]
    return subprocess.Popen(command_line, env=env | {"OMP_NUM_THREADS": "1"}, **options)


def wait_for(condition, seconds=300):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_the_console_of_a_new_user(data_dir, tmp_path):
    """In a terminal of 100 columns: no line is broken, no library warns, a mistake is one line."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    environment["COLUMNS"] = "100"
    process = start(drol, command(data_dir, tmp_path), env=environment)
    out, err = process.communicate()
    assert process.returncode == 0 and err == "", err
    lines = out.replace(str(data_dir), "data").splitlines()
    assert 25 <= len(lines) <= 60
    # a path is not broken: it is there to be copied
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
    process = start(drol, command(data_dir, tmp_path, "--lr", -1), env=environment)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == "error: --lr -1.0: give 0 to 1\n"
    process = start(drol, command(data_dir, tmp_path, "--task", 9), env=environment)
    out, err = process.communicate()
    assert process.returncode != 0 and "--task" in err and "Traceback" not in err


# ---------------------------------------------------------------------------- killed and stopped


@pytest.mark.slow
def test_killed_three_times_and_resumed_is_the_uninterrupted_run(data_dir, tmp_path):
    flags = ["--steps", 1500, "--eval-interval", 750, "--checkpoint-interval", 50]
    flags += ["--eval-episodes", 1]
    args = lambda folder: command(data_dir, tmp_path / folder, *flags, "--log-interval", 25)
    drol.main(args("whole"))
    rng = random.Random(0)

    def logged():
        return [row for path in tmp_path.glob("killed/*/*/*/train.csv") for row in read(path)]

    for _ in range(3):
        process, at = start(drol, args("killed")), len(logged()) + rng.randint(1, 12)
        wait_for(lambda at=at, process=process: len(logged()) >= at or process.poll() is not None)
        process.kill()
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, (out, err)  # it had not ended by itself
    process = start(drol, args("killed"))
    out, err = process.communicate()
    assert process.returncode == 0 and "resumed at update" in out, err
    whole, killed = run_of(tmp_path / "whole"), run_of(tmp_path / "killed")
    assert same_weights(whole, killed)
    assert (whole / "eval.csv").read_bytes() == (killed / "eval.csv").read_bytes()
    assert without_rates(whole / "train.csv") == without_rates(killed / "train.csv")
    events = EventAccumulator(str(killed)).Reload()
    steps = [x.step for x in events.Scalars("train/mse")]  # what was not flushed yet is lost
    assert steps == sorted(set(steps)) and steps[-1] == 1500


@pytest.mark.slow
@pytest.mark.parametrize("number, during", [
    (signal.SIGINT, "training"), (signal.SIGTERM, "evaluation"), (signal.SIGINT, "evaluation"),
])  # fmt: skip
def test_a_signal_saves_and_the_same_command_goes_on(data_dir, tmp_path, number, during):
    """As a terminal and a cluster send it: to every process of the group. An evaluation that was
    cut off is made up for, with the numbers of one that was not."""
    flags = ["--eval-episodes", 4, "--checkpoint-interval", 1_000_000, "--log-interval", 10]
    if during == "training":
        flags += ["--steps", 1000, "--eval-interval", 1000]
    args = command(data_dir, tmp_path / "stopped", *flags)
    process = start(drol, args, start_new_session=True)
    rows = lambda: [row for path in tmp_path.glob("*/*/*/*/train.csv") for row in read(path)]
    wait_for(lambda: len(rows()) >= 2)  # the evaluation at update 20 begins here
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "saved" in out, (out, err)
    assert "Traceback" not in err, err
    run = run_of(tmp_path / "stopped")
    assert not (run / "eval.csv").exists()
    at = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert at == 20 if during == "evaluation" else 20 <= at < 1000
    assert f"stopped at update {at:,}" in out
    drol.main(args)
    drol.main(command(data_dir, tmp_path / "whole", *flags))
    whole = run_of(tmp_path / "whole")
    assert same_weights(run, whole)
    assert (run / "eval.csv").read_bytes() == (whole / "eval.csv").read_bytes()


def test_a_run_stopped_in_its_evaluation_makes_up_for_it(monkeypatch, tmp_path):
    """In this process: the signal comes with the first action of the second evaluation."""
    install(monkeypatch)
    settings = {"steps": 6, "eval_interval": 2, "eval_episodes": 4, "log_interval": 2}
    whole = train(tmp_path / "whole", **settings)
    act = drol.act

    def act_and_stop(*args):
        if (tmp_path / "parts" / "checkpoint.pt").exists():  # of the first evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return act(*args)

    with monkeypatch.context() as patch:
        patch.setattr(drol, "act", act_and_stop)
        with pytest.raises(SystemExit) as exit:
            train(tmp_path / "parts", **settings)
    assert exit.value.code == 128 + signal.SIGTERM
    saved = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4 and [row["step"] for row in saved["rows"]["eval"]] == [2]
    parts = train(tmp_path / "parts", **settings)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    csv = [(tmp_path / name / "eval.csv").read_bytes() for name in ("whole", "parts")]
    assert csv[0] == csv[1]

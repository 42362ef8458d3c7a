"""Fixtures that several test files share. What takes long is made once per test session."""

import os
import shutil

import filelock
import gymnasium
import pytest
import torch

from tests import fake
from tests.helpers import ADROIT, ANTMAZE, command, run_of, write_d4rl_file
from tools import collect

torch.set_num_threads(1)  # networks of this size only lose by more


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """shared(name, make) is the session's folder of this name. make(folder) fills it, once."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all processes of the session

    def folder_of(name, make):
        folder, partial = base / name, base / f"{name}-partial"
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that failed
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def data_dir(shared):
    """A dataset of pointmaze-medium, made by the real collector: 2 episodes, 1 for validation."""
    flags = ["--env-id", "pointmaze-medium", "--episodes", "2", "--jobs", "1", "--data-dir"]
    return shared("data", lambda folder: collect.main([*flags, str(folder)]))


@pytest.fixture(scope="session")
def d4rl_dir(shared):
    """Files in D4RL's format: antmaze-umaze, 4 episodes of 61 steps; pen-human, 10 of 40."""
    pytest.importorskip("h5py")
    pytest.importorskip("d4rl_compat")

    def make(folder):
        write_d4rl_file(ANTMAZE, folder, 4, 61)
        write_d4rl_file(ADROIT, folder, 10, 40)

    return shared("data-d4rl", make)


@pytest.fixture
def corridors(monkeypatch):
    """Environments step in this process. Is the list of all corridors that are made."""
    monkeypatch.setattr(gymnasium.vector, "AsyncVectorEnv", fake.InThisProcess)
    fake.MADE.clear()
    return fake.MADE


@pytest.fixture
def corridor_run(corridors, tmp_path):
    """corridor_run(program, name, *flags) trains in corridors and returns the run's folder, which
    is below tmp_path / name."""

    def run(program, name, *flags):
        program.main(command(None, tmp_path / name, *flags, program=program))
        return run_of(tmp_path / name)

    return run

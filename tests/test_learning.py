"""That a run learns: collects data, trains and plays as a user does, in minutes on one core."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, read, run_of
from tools.figures import final_score


def run(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, check=True)


@pytest.mark.slow
def test_a_run_learns_to_move_a_cube(tmp_path):
    """40 episodes of cube-single and a small network. Seeds 0 to 2 scored 41, 40 and 52 of 100,
    with 16 to 68 in each of the evaluations that count; untrained networks scored 0."""
    data = tmp_path / "data"
    run("-m", "tools.collect", "--env-id", "cube-single", "--episodes", 40, "--data-dir", data)
    flags = ["--env-id", "cube-single", "--data-dir", data, "--device", "cpu", "--k", 4]
    flags += ["--hidden-dims", 128, 128, "--lr", 1e-3, "--tau", 0.02, "--eval-interval", 3000]
    flags += ["--eval-episodes", 25, "--eval-envs", 5]
    scores = []
    for steps in (1, 15_000):
        folder = tmp_path / f"{steps}"
        run("drol.py", *flags, "--steps", steps, "--run-dir", folder)
        rows = [{"score": float(row["score"])} for row in read(run_of(folder) / "eval.csv")]
        scores.append(final_score(rows, "cube-single"))
    untrained, trained = scores
    assert untrained <= 4 and trained >= 20, scores

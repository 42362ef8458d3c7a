"""Tests of results/toy: what is measured, what a training shows, and the loop of one's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import drol
from results.toy import toy

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_what_candidates_are_for():
    """K = 16 finds every mode with more Q than the data has. K = 1 ends between the modes."""
    data = toy.sample_data(2_000, drol.make_generator("cpu", 0))
    in_data = toy.measure(data["actions"])
    assert in_data["modes_found"] == 5 and in_data["in_discs"] == pytest.approx(0.989, abs=0.01)
    one, many = (toy.measure(toy.train(drol, k, 10.0, data, 0, 1_000)) for k in (1, 16))
    assert one["modes_found"] == one["in_discs"] == 0 and one["mean_q"] < in_data["mean_q"]
    assert many["modes_found"] == 5 and many["in_discs"] > 0.4
    assert many["mean_q"] > in_data["mean_q"] + 0.01


@pytest.mark.slow
def test_loop_of_ones_own(tmp_path):
    """In another folder, with what its docstring copies out of drol.py, it finds the reward."""
    for path in (ROOT / "drol.py", ROOT / "results" / "toy" / "lifted.py"):
        shutil.copy(path, tmp_path)
    (copy,) = [x for x in (tmp_path / "lifted.py").read_text().splitlines() if "sed -n" in x]
    subprocess.run(["bash", "-c", copy], cwd=tmp_path, check=True)
    (tmp_path / "drol.py").unlink()
    result = subprocess.run(
        [sys.executable, "lifted.py"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert float(result.stdout.split()[-1]) > 0.9  # the data: 0.25

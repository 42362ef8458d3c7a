"""Tests of tools/toy.py: what is measured, and what a short training shows of the method."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import drol
from tools import toy


@pytest.fixture(scope="module")
def data():
    return toy.sample_data(2_000, drol.make_generator("cpu", 0))


def test_measure():
    """By hand: eight samples in the largest mode, one at the edge of the smallest, one outside."""
    largest, smallest = toy.CENTRES[0], toy.CENTRES[4]
    edge = smallest + torch.tensor([0.0, 0.99 * toy.RADIUS])
    outside = torch.zeros(2)
    actions = torch.stack([*[largest] * 8, edge, outside])
    q = [1 + 0.3 * x + 0.4 * (x * x + y * y) for x, y in actions.tolist()]
    expected = {"mean_q": np.mean(q), "in_support": 0.9, "modes_covered": 0.4}
    assert toy.measure(actions) == pytest.approx(expected, abs=1e-4)


def test_data(data):
    """Modes of the stated shares that do not touch; Q rises outwards from each centre."""
    assert torch.pdist(toy.CENTRES).min() > 2 * toy.RADIUS
    assert toy.measure(data)["modes_covered"] == 1
    assert toy.measure(data)["in_support"] == pytest.approx(0.989, abs=0.01)
    mode = torch.cdist(data, toy.CENTRES).argmin(1)
    shares = torch.bincount(mode) / len(data)
    assert torch.allclose(shares, toy.MODE_SHARES, atol=0.03)
    q = toy.FixedCritic()
    assert (q(None, toy.CENTRES * 1.3) > q(None, toy.CENTRES)).all()


@pytest.mark.slow
def test_what_candidates_are_for(data):
    """K = 16 covers every mode and raises Q above the data's. K = 1 sits between the modes."""
    _, _, sixteen = toy.make_methods(16)
    one, _, _ = toy.make_methods(16)
    last = 1_000
    numbers = {}
    for method in (one, sixteen):
        record = toy.train(method, data, [(10.0, 0), (10.0, 1)], last, [0, last], "")
        numbers[method.k] = [toy.measure(actions) for actions in record[last][0]]
        assert record[0][1].shape == (2, method.k, 2)
    data_q = toy.measure(data)["mean_q"]
    for row in numbers[16]:
        assert row["modes_covered"] == 1
        assert row["mean_q"] > data_q + 0.01
        assert row["in_support"] > 0.5
    for row in numbers[1]:
        assert row["modes_covered"] == row["in_support"] == 0
        assert row["mean_q"] < data_q


def test_runs_of_one_training_do_not_touch_each_other(data):
    """A row's loss reads its own parameters: another weight beside it changes nothing."""
    for method in toy.make_methods(4):
        runs = [(1.0, 0), (10.0, 0)], [(1.0, 0), (100.0, 0)]
        first, second = (toy.train(method, data, r, 20, [20], "")[20][0] for r in runs)
        assert torch.allclose(first[0], second[0], atol=1e-6)
        assert not torch.allclose(first[1], second[1], atol=1e-6)


def test_files(tmp_path, monkeypatch):
    """The command line writes its pictures and every number that they show."""
    monkeypatch.setattr(toy, "FRAMES", 3)
    monkeypatch.setattr(toy, "FRONTIER_SEEDS", range(2))
    flags = ["--updates", "8", "--k", "4", "--frontier", "--out", str(tmp_path)]
    toy.main(flags)
    with open(tmp_path / "toy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows] == [""] + ["0", "2", "8"] * 3
    with open(tmp_path / "frontier.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 3 * 5 * 2
    assert {row["method"] for row in rows} == {"data", "DROL, K = 1", "DROL, K = 4", "FQL"}
    with Image.open(tmp_path / "toy.gif") as picture:
        assert picture.size == (880, 500) and picture.n_frames == 3
    for name in ("toy.png", "frontier.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 880


@pytest.mark.parametrize(
    "flag", ["--k=1", "--updates=0", "--alpha=nan", "--bc-coef=-1", "--seed=-1"]
)
def test_wrong_settings(flag):
    with pytest.raises(SystemExit, match="error: --k is 2 or more"):
        toy.main([flag])

"""Tests of tools/toy.py: what is measured, and what a short training shows of the method."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import drol
import fql
from tools import toy


@pytest.fixture(scope="module")
def data():
    return toy.sample_data(2_000, drol.make_generator("cpu", 0))


def latents(program=drol):
    return program.sample_latents(toy.SAMPLES, 2, generator=drol.make_generator("cpu", 1))


def test_measure():
    """By hand: eight samples in the largest mode, one at the edge of the smallest, one outside."""
    largest, smallest = toy.CENTRES[0], toy.CENTRES[4]
    edge = smallest + torch.tensor([0.0, 0.99 * toy.RADIUS])
    actions = torch.stack([*[largest] * 8, edge, torch.zeros(2)])
    q = [1 + 0.3 * x + 0.4 * (x * x + y * y) for x, y in actions.tolist()]
    expected = {"mean_q": np.mean(q), "in_support": 0.9, "modes_covered": 2}
    assert toy.measure(actions) == pytest.approx(expected, abs=1e-4)


def test_data(data):
    """Modes of the stated shares that do not touch; Q rises outwards from each centre."""
    assert torch.pdist(toy.CENTRES).min() > 2 * toy.RADIUS
    assert toy.measure(data)["modes_covered"] == 5
    assert toy.measure(data)["in_support"] == pytest.approx(0.989, abs=0.01)
    mode = torch.cdist(data, toy.CENTRES).argmin(1)
    assert torch.allclose(torch.bincount(mode) / len(data), toy.MODE_SHARES, atol=0.03)
    q = toy.FixedCritic()
    assert (q(None, toy.CENTRES * 1.3) > q(None, toy.CENTRES)).all()


@pytest.mark.slow
def test_what_candidates_are_for(data):
    """K = 16 covers every mode and raises Q above the data's. K = 1 sits between the modes."""
    numbers = {}
    for k in (1, 16):
        act = toy.train(drol, k, data, [(10.0, 0), (10.0, 1)], 1_000)
        numbers[k] = [toy.measure(actions) for actions in act(latents())]
    data_q = toy.measure(data)["mean_q"]
    for row in numbers[16]:
        assert row["modes_covered"] == 5
        assert row["mean_q"] > data_q + 0.01
        assert row["in_support"] > 0.4
    for row in numbers[1]:
        assert row["modes_covered"] == row["in_support"] == 0
        assert row["mean_q"] < data_q


@pytest.mark.parametrize("program, k", [(drol, 1), (drol, 4), (fql, 1)])
def test_runs_of_one_training_do_not_touch_each_other(data, program, k):
    """A row's loss reads its own parameters: another weight beside it changes nothing."""
    runs = [(1.0, 0), (10.0, 0)], [(1.0, 0), (100.0, 0)]
    first, second = (toy.train(program, k, data, r, 20)(latents(program)) for r in runs)
    assert first.shape == (2, toy.SAMPLES, 2)
    assert torch.allclose(first[0], second[0], atol=1e-6)
    assert not torch.allclose(first[1], second[1], atol=1e-6)


def test_routing_picture():
    """The winner's cell is the nearest candidate's, and the arrows end at the action and uphill."""
    candidates = torch.tensor([[-0.5, -0.5], [0.5, 0.0], [-0.5, 0.5]])
    action = torch.tensor([0.7, 0.2])
    figure = toy.draw_routing(candidates, action)
    (shaded,) = [patch for patch in figure.axes[1].patches if patch.get_alpha() == 0.2]
    probes = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    nearest = np.linalg.norm(probes[:, None] - candidates.numpy(), axis=2).argmin(1)
    assert (shaded.get_path().contains_points(probes) == (nearest == 1)).all()
    clone, climb = [x for x in figure.axes[2].texts if not x.get_text()]
    assert np.allclose(clone.xy, action) and np.allclose(clone.xyann, candidates[1])
    uphill = np.array([0.3 + 0.8 * 0.5, 0.0])  # the gradient of Q at the winner
    assert np.allclose(climb.xy - candidates[1].numpy(), 0.4 * uphill / np.linalg.norm(uphill))


def test_files(tmp_path):
    """The command line writes its pictures and every number that they show."""
    toy.main(["--updates", "8", "--k", "4", "--seeds", "2", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "toy.csv")
    assert len(table) == 1 + 3 * 5 * 2
    assert set(table.method) == {"data", "DROL, K = 1", "DROL, K = 4", "FQL"}
    for name in ("toy", "frontier", "routing"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 1660


@pytest.mark.parametrize("flag", ["--k=0", "--updates=0", "--seeds=-1"])
def test_wrong_settings(flag, capsys):
    with pytest.raises(SystemExit) as exit:
        toy.main([flag])
    assert exit.value.code == 2 and "greater than 0" in capsys.readouterr().err

"""Tests of results/toy: what a training on it shows."""

import pytest

import drol
from results.toy import toy


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

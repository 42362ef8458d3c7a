"""Tests of tools/bench.py: what is timed, and the table that is written."""

import pandas as pd
import torch

import drol
import fql
from tests.helpers import refused
from tools import bench

SMALL = ["--hidden-dims", "32", "16", "--batch-size", "64", "--seconds", "0.05"]
SMALL += ["--observation-dim", "6", "--action-dim", "2"]


def test_every_method_is_timed_in_both_modes(tmp_path, monkeypatch):
    """An update gets the settings and losses of its row, and fresh batches and noise."""
    seen, compiled = [], []
    monkeypatch.setattr(drol, "update", lambda *args: seen.append(args))
    monkeypatch.setattr(torch, "compile", lambda f, mode: compiled.append(f) or f)
    bench.main([*SMALL, "--k", "1", "8", "--out", str(tmp_path / "new" / "bench.csv")])
    rows = pd.read_csv(tmp_path / "new" / "bench.csv")
    assert list(rows.method) == ["DROL K = 1"] * 2 + ["DROL K = 8"] * 2 + ["FQL"] * 2
    assert list(rows["mode"]) == ["eager", "compile"] * 3
    assert compiled == [drol.total_loss] * 2 + [fql.total_loss]
    assert (rows.update_ms > 0).all() and (rows.action_ms > 0).all()
    assert set(rows.hidden_dims) == {"32 16"} and set(rows.batch_size) == {64}
    (*_, batch, noise, args, _), (*_, later, later_noise, _, _) = seen[-2:]
    assert batch["observations"].shape == (64, 6) and batch["actions"].shape == (64, 2)
    assert noise["candidate_z"].shape == (64, 8, 2)
    assert not torch.equal(batch["observations"], later["observations"])
    assert not torch.equal(noise["candidate_z"], later_noise["candidate_z"])
    assert (args.k, args.batch_size, args.hidden_dims, args.bc_coef) == (8, 64, (32, 16), 0.3)


def test_mistakes_are_refused(tmp_path):
    refused(bench, ["--out", tmp_path], tmp_path)

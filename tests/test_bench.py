"""Tests of tools/bench.py: what is counted, what is timed, and the table that is written."""

import time

import pandas as pd
import pytest
import torch

import drol
import fql
from tools import bench, records

SMALL = ["--hidden-dims", "32", "16", "--batch-size", "64", "--seconds", "0.05", "--no-compile"]
SMALL += ["--observation-dim", "6", "--action-dim", "2"]


@pytest.fixture
def compiled(monkeypatch):
    """What was to be compiled, and how. It stays as it is."""
    calls = []
    keep = lambda function, mode: calls.append((function, mode)) or function
    monkeypatch.setattr(torch, "compile", keep)
    return calls


@pytest.fixture
def table(tmp_path, compiled):
    """table(flags) is what a call writes."""

    def call(*flags):
        path = tmp_path / "new" / "bench.csv"
        bench.main([*SMALL, *flags, "--out", str(path)])
        return pd.read_csv(path)

    yield call
    torch.set_float32_matmul_precision("highest")


def test_floor_and_times(table, compiled, capsys):
    """The floor's multiply-adds by hand for O = 6, A = 2, hidden 32 and 16."""
    rows = table("--k", "1", "8").set_index("method")
    actor = 8 * 32 + 32 * 16 + 16 * 2
    critic = 8 * 32 + 32 * 16 + 16 * 1
    flow = 9 * 32 + 32 * 16 + 16 * 2
    passes = {"DROL K = 1": (4, 0), "DROL K = 8": (12, 0), "FQL": (4, 13)}
    assert list(rows.index) == list(passes)
    for method, (actor_passes, flow_passes) in passes.items():
        row = rows.loc[method]
        flops = 2 * 64 * (actor_passes * actor + 12 * critic + flow_passes * flow)
        assert row.floor_ms == pytest.approx(flops / row.gflop_per_s / 1e6, rel=0.05, abs=1e-3)
        assert row.update_ms > row.floor_ms > 0 and row.action_ms > 0
        assert row.ratio == pytest.approx(row.update_ms / row.floor_ms, rel=0.5)
    assert set(rows["mode"]) == {"eager"} and not compiled
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("CPU, ") and out[1].startswith("method ")
    assert [line[:10].strip() for line in out[2:5]] == list(passes)
    assert all(str(ms) in line for ms, line in zip(rows.update_ms, out[2:5], strict=True))


def test_every_mode_at_every_precision(table, compiled, monkeypatch):
    """An update gets the settings, precision and losses of its row, fresh batches and noise."""
    seen, precisions = [], []

    def update(*args):
        seen.append(args)
        precisions.append(torch.get_float32_matmul_precision())

    monkeypatch.setattr(drol, "update", update)
    flags = ["--k", "8", "--compile", "--matmul-precision", "high", "highest"]
    rows = table(*flags, "--seconds", "0.001")
    assert list(rows["mode"]) == ["eager", "compile"] * 4
    assert list(rows.matmul_precision) == ["high", "high", "highest", "highest"] * 2
    assert precisions == sorted(precisions) and set(precisions) == {"high", "highest"}
    mode = "reduce-overhead" if torch.cuda.is_available() else "default"
    assert compiled == [(drol.losses, mode)] * 2 + [(fql.losses, mode)] * 2
    (_, _, batch, noise, args, losses), (_, _, later, later_noise, _, _) = seen[:2]
    assert batch["observations"].shape == (64, 6) and batch["actions"].shape == (64, 2)
    assert noise["candidate_z"].shape == (64, 8, 2) and losses is drol.losses
    assert not torch.equal(batch["observations"], later["observations"])
    assert not torch.equal(noise["candidate_z"], later_noise["candidate_z"])
    assert (args.k, args.batch_size, args.hidden_dims, args.bc_coef) == (8, 64, (32, 16), 0.3)


def test_a_time_is_the_median_of_calls():
    calls = []

    def function():
        calls.append(time.perf_counter())
        time.sleep(0.3 if len(calls) % 3 == 0 else 0.01)  # a mean would be above 100 ms

    assert 10 <= bench.median_ms(function, 1.5) < 100
    assert calls[-1] - calls[0] > 1.5


def test_a_gpu_is_waited_for_around_a_block(monkeypatch):
    """Not after each call, and never with the clock read in between."""
    happened = []
    clock = iter(range(100))
    monkeypatch.setattr(bench, "GPU", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("wait"))
    monkeypatch.setattr(time, "perf_counter", lambda: happened.append("clock") or next(clock))
    ms = bench.median_ms(lambda: happened.append("call"), 2)
    block = ["wait", "clock", *["call"] * 50, "wait", "clock"]
    assert happened == [*["call"] * 5, "clock", *block, "clock"]
    assert ms == 1000 / 50


def test_the_columns(table, tmp_path):
    """Those that the runtime figure needs are there, and a CPU times one precision."""
    rows = table("--k", "2")
    assert list(rows.columns) == [
        "method", "mode", "matmul_precision", "update_ms", "floor_ms", "ratio", "action_ms",
        "gflop_per_s", "device", "batch_size", "hidden_dims", "observation_dim", "action_dim",
        "torch",
    ]  # fmt: skip
    assert {"method", "update_ms", *records.HARDWARE} <= set(rows.columns)
    assert set(rows.hidden_dims) == {"32 16"} and set(rows.batch_size) == {64}
    if not torch.cuda.is_available():
        assert set(rows.matmul_precision) == {"highest"}


@pytest.mark.parametrize("flags", [["--k", "0"], ["--seconds", "0"], ["--hidden-dims", "16", "0"]])
def test_mistakes_are_refused(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        bench.main([*flags, "--out", str(tmp_path / "bench.csv")])
    assert exit.value.code == 2 and "greater than 0" in capsys.readouterr().err
    assert not (tmp_path / "bench.csv").exists()


def test_a_file_that_cannot_be_written_is_told_first(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "bench.csv"):
        with pytest.raises(SystemExit, match="error: --out .* cannot be written"):
            bench.main(["--out", str(path)])

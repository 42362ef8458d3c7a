"""Tests of tools/bench.py: what is counted, what is timed, and the CSV that the figure reads."""

import time

import pandas as pd
import pytest
import torch

import drol
import fql
from tools import bench, figures, records

SMALL = {"observation_dim": 6, "action_dim": 2, "hidden_dims": (32, 16), "batch_size": 64,
         "seconds": 0.05, "device": "cpu"}


@pytest.mark.parametrize("k, actor_passes, flow_passes", [(1, 4, 0), (8, 12, 0), (None, 4, 13)])
def test_floor_and_times(k, actor_passes, flow_passes):
    """The floor's multiply-adds by hand for O = 6, A = 2, hidden 32 and 16."""
    row = bench.measure(bench.Args(**SMALL), k)
    actor = 8 * 32 + 32 * 16 + 16 * 2
    critic = 8 * 32 + 32 * 16 + 16 * 1
    flow = 9 * 32 + 32 * 16 + 16 * 2
    flops = 2 * 64 * (actor_passes * actor + 12 * critic + flow_passes * flow)
    floor_ms = flops / row["gflop_per_s"] / 1e6
    assert row["floor_ms"] == pytest.approx(floor_ms, rel=0.05, abs=1e-3)
    assert row["update_ms"] > row["floor_ms"] and row["action_ms"] > 0
    assert row["ratio"] > 1 and row["mode"] == "eager" and row["peak_mb"] > 10
    assert row["method"] == ("FQL" if k is None else f"DROL K = {k}")


def test_a_time_is_the_median_of_calls():
    calls = []

    def function():
        calls.append(time.perf_counter())
        time.sleep(0.3 if len(calls) % 3 == 0 else 0.01)  # a mean would be above 100 ms

    assert 10 <= bench.median_ms(function, 1.5) < 100
    assert calls[-1] - calls[0] > 1


def test_what_is_timed_is_training(monkeypatch):
    """An update gets fresh batches and noise of the sizes asked for, and the settings asked for."""
    seen = []

    def update(networks, optimizer, batch, noise, settings, losses):
        seen.append((batch, noise, settings, losses))

    monkeypatch.setattr(drol, "update", update)
    bench.measure(bench.Args(**SMALL, routing_dtype="bfloat16"), 8)
    (first, first_noise, settings, losses), (second, second_noise, _, _) = seen[:2]
    assert first["observations"].shape == (64, 6) and first["actions"].shape == (64, 2)
    assert first_noise["latents"].shape == (64, 8, 2) and losses is drol.losses
    assert not torch.equal(first["observations"], second["observations"])
    assert not torch.equal(first_noise["latents"], second_noise["latents"])
    assert settings.routing_dtype == "bfloat16" and settings.batch_size == 64 and settings.k == 8


@pytest.mark.parametrize("compile, expected", [("on", "compile"), ("off", "eager")])
def test_losses_are_compiled_where_it_is_asked_for(monkeypatch, compile, expected):
    compiled, used = [], []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    update = fql.update
    monkeypatch.setattr(fql, "update", lambda *args: used.append(args[-1]) or update(*args))
    assert bench.measure(bench.Args(**SMALL | {"compile": compile}), None)["mode"] == expected
    assert compiled == [fql.losses] * (compile == "on") and set(used) == {fql.losses}


def test_the_figure_reads_what_is_written(tmp_path, capsys):
    """The command in a process of its own, as users call it."""
    path = tmp_path / "new" / "bench.csv"
    bench.main(["--k", "2", "--no-fql", "--hidden-dims", "16", "--seconds", "0.05",
                "--device", "cpu", "--out", str(path)])
    out = capsys.readouterr().out
    assert "DROL K = 2" in out and str(path) in out
    (row,) = pd.read_csv(path).to_dict("records")
    assert (row["method"], row["routing_dtype"]) == ("DROL K = 2", "float32")
    assert (row["hidden_dims"], row["batch_size"]) == (16, 256)
    table, figure = figures.runtime(records.load_runtime(path))
    (bar,) = figure.axes[0].patches
    assert bar.get_height() == row["update_ms"] == table.update_ms[0]


@pytest.mark.parametrize("args, word", [
    (["--k", "0"], "--k"),
    (["--k", "--no-fql"], "--fql"),
    (["--seconds", "0"], "--seconds"),
    (["--hidden-dims", "16", "0"], "--hidden-dims"),
    (["--device", "cuda:99"], "--device"),
])
def test_mistakes_get_one_sentence(args, word, tmp_path):
    with pytest.raises(SystemExit) as exit:
        bench.main([*args, "--out", str(tmp_path / "bench.csv")])
    message = str(exit.value)
    assert message.startswith("error: ") and word in message and "\n" not in message
    assert not (tmp_path / "bench.csv").exists()

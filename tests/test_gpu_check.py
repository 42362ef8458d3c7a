"""Tests of tools/gpu_check.py, with tiny networks and with stand-ins for what only CUDA has; and
of what a compiled update needs of the programs."""

import contextlib
import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import drol
import fql
from tests.corridor import install, made_up_data, outcome
from tests.helpers import every_program
from tools import gpu_check

SMALL = ["--k", "4", "--hidden-dims", "16", "16", "--batch-size", "32", "--seconds", "0.01"]
SMALL += ["--observation-dim", "6", "--action-dim", "2", "--matmul-precision", "highest"]
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of what a CPU says")


@pytest.fixture
def quick_compiler(monkeypatch):
    """Compiles all but the machine code."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode=None: compile(f, backend="eager"))
    yield
    torch.compiler.reset()


def table(capsys):
    """What the program prints: {(method, mode): {column: cell}}."""
    gpu_check.main(SMALL)
    out = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(out) if line.startswith("method"))
    split = lambda line: [line[i : i + 17].strip() for i in range(0, len(line), 17)]
    cells = [split(line) for line in out[head + 1 : -2]]
    return {(c[0], c[2]): dict(zip(split(out[head])[3:], c[3:], strict=False)) for c in cells}


@on_a_cpu
def test_what_is_told_on_a_cpu(quick_compiler, capsys):
    rows = table(capsys)
    assert list(rows) == [(m, mode) for m in ("DROL K = 4", "FQL") for mode in gpu_check.MODES]
    for (_, mode), cells in rows.items():
        told = {name: cell for name, cell in cells.items() if cell != "needs a GPU"}
        if mode not in ("eager", "compile"):
            assert not told
            continue
        assert list(told) == ["gradient", "again", "resumed", "ms"]
        assert told["again"] == told["resumed"] == "same" and float(told["ms"]) > 0
        assert float(told["gradient"]) == 0 if mode == "eager" else float(told["gradient"]) < 1e-5


@on_a_cpu
def test_faults_are_seen(capsys, monkeypatch):
    """Runs that are not resumed, runs that never end alike, and compilers that do not work."""

    def wrong(networks, batch, noise, args):
        if "candidate_z" not in noise:
            raise RuntimeError("no compiler")
        loss, metrics = drol.losses(networks, batch, noise, args)
        return 2 * loss, metrics

    sample, calls = fql.sample_noise, itertools.count()
    other = lambda *args: {key: x + next(calls) / 1000 for key, x in sample(*args).items()}
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: wrong)
    monkeypatch.setattr(drol.Run, "load", lambda run: None)
    monkeypatch.setattr(fql, "sample_noise", other)
    rows = table(capsys)
    assert rows["DROL K = 4", "compile"]["gradient"] == "1.0e+00"
    assert rows["DROL K = 4", "eager"]["again"] == "same"
    assert rows["DROL K = 4", "eager"]["resumed"].endswith(" off")
    assert rows["FQL", "eager"]["again"].endswith(" off")
    assert rows["FQL", "compile"]["waits"].startswith("fails: Runtime")


def test_waits_are_counted(monkeypatch):
    """torch warns of each, once it is asked to."""
    modes = []

    def update():
        assert modes == ["warn"]
        for text in ("called a synchronizing CUDA operation", "something else") * 2:
            warnings.warn(text, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    assert gpu_check.count_waits(update) == 2
    assert modes == ["warn", "default"]


def test_launches_are_counted(monkeypatch):
    happened = []
    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    event = lambda name, kind, note=False: SimpleNamespace(
        name=name, device_type=kind, is_user_annotation=note
    )
    events = [event(name, cpu) for name in (
        "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch",
        "cudaMemcpyAsync", "cudaMemsetAsync", "cudaStreamSynchronize", "aten::mm",
    )]  # fmt: skip
    events += [event("a_kernel", cuda), event("Memcpy HtoD", cuda), event("Adam", cuda, True)]

    @contextlib.contextmanager
    def profile():
        yield SimpleNamespace(events=lambda: events)
        happened.append("end")

    monkeypatch.setattr(torch.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("wait"))
    cells = gpu_check.count_launches(lambda: happened.append("update"))
    assert cells == {"launches": 6, "kernels": 2}
    assert happened == ["update", "wait", "end"]


def test_every_call_of_a_graph_is_one_update(monkeypatch):
    """With a graph whose recording undoes what was run, as CUDA's runs nothing."""
    state, registered, recorded = {"n": 0}, [], []

    @contextlib.contextmanager
    def record(graph, stream):
        before = dict(state)
        yield
        state.update(before)
        recorded.append((graph, stream))

    def function():
        state["n"] += 1

    graph = SimpleNamespace(register_generator_state=registered.append, replay=function)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", record)
    update = gpu_check.Graph(function, ["batches", "noise"])
    for n in range(1, 10):
        update()
        assert state["n"] == n and len(recorded) == (n > 3)
    assert registered == ["batches", "noise"] and recorded == [(graph, stream)]


def test_environments_are_played(monkeypatch):
    corridors = install(monkeypatch)
    lengths = [outcome(drol.make_seed(0, 0, i, 0))[0] for i in range(10)]
    expected = f"played, {np.mean(lengths):.1f} steps per episode"
    assert gpu_check.check_environments() == expected and len(corridors) == 10


@every_program
def test_losses_compile_to_one_graph(program):
    """Without a break, once for all runs, and with the parameters fixed: a CUDA graph copies in
    the batch and the noise alone."""
    inputs = []

    def backend(graph, _):
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        assert all(isinstance(node.meta["example_value"], torch.Tensor) for node in places)
        fixed = lambda node: "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})
        inputs.append({node.name for node in places if not fixed(node)})
        return graph

    args = program.Args("cube-single", hidden_dims=(16,), batch_size=32, device="cpu")
    program.resolve(args)
    loss_fn = torch.compile(program.losses, fullgraph=True, backend=backend)
    data = made_up_data()
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        networks = program.make_networks(2, 2, (16,), generator)
        optimizer = torch.optim.Adam(networks.parameters(), fused=True)
        for _ in range(2):
            batch = program.sample_batch(data, 32, generator)
            noise = program.sample_noise(args, 2, generator)
            expected, _ = program.losses(networks, batch, noise, args)
            assert loss_fn(networks, batch, noise, args)[0].item() == expected.item()
            program.update(networks, optimizer, batch, noise, args, loss_fn)
    names = {f"l_batch_{key}_" for key in batch} | {f"l_noise_{key}_" for key in noise}
    assert inputs == [names]

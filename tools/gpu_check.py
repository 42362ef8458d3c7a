"""Checks on a GPU that updates of drol.py and fql.py are exact and quick, in every mode.

    python tools/gpu_check.py

One line for each method, precision of matrix products and mode:

eager             a run without --compile
compile           torch.compile in its default mode
reduce-overhead   a run with --compile: PyTorch's own CUDA graphs
graph             the whole update as one CUDA graph; the programs do not have this
graph, compile    the same with compiled losses

waits      how often an update waits for the GPU; should be 0
launches   calls in an update that give the GPU work
kernels    kernels, copies and fills that an update runs
gradient   largest difference from eager in the first update, relative to the largest gradient
again      whether a second run of 10 updates ends with the weights of the first, to the bit
resumed    whether a run that is saved after 5 of them and loaded again does

The first run is that of the same kernels, eager or compiled, without a CUDA graph.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are

import drol  # noqa: E402
from tools import bench  # noqa: E402

NEEDS = "needs a GPU"
MODES = {  # the losses, the first run's losses, and whether the whole update is one CUDA graph
    "eager": ("eager", "eager", False),
    "graph": ("eager", "eager", True),
    "compile": ("compile", "compile", False),
    "graph, compile": ("compile", "compile", True),
    "reduce-overhead": ("reduce-overhead", "compile", False),
}
COLUMNS = ["waits", "launches", "kernels", "gradient", "again", "resumed", "ms"]


@dataclass
class Args(bench.Args):
    seconds: PositiveFloat = 1.0  # how long each time is measured


class Graph:
    """A function without arguments, from its fourth call on replayed as one CUDA graph."""

    def __init__(self, function, generators):
        self.function, self.calls = function, 0
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        for generator in generators:  # a replay draws on from where they are
            self.graph.register_generator_state(generator)

    def __call__(self):
        self.calls += 1
        if self.calls < 4:  # makes what has to be there before: Adam's state, compiled kernels
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.function()
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.calls == 4:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.function()
        self.graph.replay()


def count_waits(update):
    """How often an update waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        update()
    torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def count_launches(update):
    """How many calls give the GPU work in an update, and how many kernels and copies it runs."""
    with torch.profiler.profile() as profile:
        update()
        torch.cuda.synchronize()
    events = profile.events()
    launch = re.compile("cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")  # of the runtime or driver
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "launches": sum(launch.match(event.name) is not None for event in events),
        "kernels": sum(not event.is_user_annotation for event in on_gpu),
    }


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def same(weights, first):
    """Whether weights equal those of the first run, else how far they are apart."""
    return "same" if torch.equal(weights, first) else f"{(weights - first).abs().max():.1e} off"


def start(program, settings, args, data, loss_fn, graph, folder):
    """A run, new or from the folder's checkpoint, and its update."""
    with contextlib.redirect_stdout(io.StringIO()):  # "resumed at"
        run = bench.make_run(program, settings, args, folder)
    run.writer.close()
    update = bench.make_update(program, run, data, loss_fn)
    if graph:
        for group in run.optimizer.param_groups:
            group["capturable"] = True
        update = Graph(update, [run.batch_generator, run.noise_generator])
    return run, update


def train(begin, *parts):
    """Trains for parts[0] updates; saves, loads, and trains for parts[1], and so on. Returns the
    last update, the gradient of the first one, and the weights at the end."""
    gradient = None
    with TemporaryDirectory() as folder:
        for count in parts:
            run, update = begin(folder)
            for _ in range(count):
                update()
                if gradient is None:
                    gradient = flat(p.grad for p in run.networks.parameters() if p.requires_grad)
            run.save()
    return update, gradient, flat(run.networks.parameters())


def check(begin, kernels, first, seconds):
    """The cells of one mode. first keeps the first gradient, and of each sort of kernels the
    weights of the first run."""
    update, gradient, weights = train(begin, 10)
    expected = first.setdefault("gradient", gradient)
    weights = first.setdefault(kernels, weights)
    difference = (gradient - expected).abs().max() / expected.abs().max()
    cells = {"waits": NEEDS, "launches": NEEDS, "kernels": NEEDS}
    if bench.GPU:
        cells = {"waits": count_waits(update), **count_launches(update)}
    return cells | {
        "gradient": f"{difference:.1e}",
        "again": same(train(begin, 10)[2], weights),
        "resumed": same(train(begin, 5, 5)[2], weights),
        "ms": f"{bench.median_ms(update, seconds):.3f}",
    }


def check_modes(program, settings, args, data):
    """(mode, cells) of every mode of a method, at the present precision."""
    torch.compiler.reset()  # else the limit of recompilations ends in eager
    loss_fns = {"eager": program.losses, "compile": torch.compile(program.losses)}
    loss_fns["reduce-overhead"] = torch.compile(program.losses, mode="reduce-overhead")
    first = {}
    for mode, (losses, kernels, graph) in MODES.items():
        begin = partial(start, program, settings, args, data, loss_fns[losses], graph)
        if not bench.GPU and mode not in ("eager", "compile"):
            yield mode, dict.fromkeys(COLUMNS, NEEDS)
            continue
        try:
            yield mode, check(begin, kernels, first, args.seconds)
        except RuntimeError as error:  # of torch: the other modes are worth knowing
            yield mode, {"waits": f"fails: {error!r:.300}"}


def check_environments():
    """Plays ten episodes in processes that are forked after CUDA was initialised, acting there."""
    envs = drol.make_envs("cube-single-play-singletask-task2-v0", 10)
    try:
        dims = (envs.single_observation_space.shape[0], envs.single_action_space.shape[0])
        actor = drol.make_networks(*dims, (32,), torch.Generator())["actor"].to(bench.DEVICE)
        generator = drol.make_generator(bench.DEVICE, 0)
        policy = partial(drol.act, actor, action_dim=dims[1], generator=generator)
        return f"played, {drol.evaluate(policy, envs, 10, (0, 0))['length']:.1f} steps per episode"
    finally:
        for process in envs.processes:
            process.kill()


def main(argv=None):
    os.environ["MUJOCO_GL"] = "disabled"  # nothing is drawn
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    print(bench.HARDWARE, torch.__version__, torch.version.cuda, sep=", ")
    data = bench.random_data(args)
    bench.show(["method", "precision", "mode", *COLUMNS])
    for name, program, settings in bench.methods(args):
        for precision in args.matmul_precision:
            torch.set_float32_matmul_precision(precision)
            for mode, cells in check_modes(program, settings, args, data):
                bench.show([name, precision, mode, *cells.values()])
    environments = check_environments() if bench.GPU else NEEDS
    print("environments forked after CUDA was initialised:", environments)
    memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if bench.GPU else NEEDS
    print("most memory of the GPU in use, with 10,000 transitions:", memory)


if __name__ == "__main__":
    main()

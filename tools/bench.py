"""Times an update and an action of DROL for several K and of FQL, beside a floor for the update.

    python tools/bench.py --k 1 16 64

Random data, and the functions that training uses, eager and compiled; on a GPU at each
--matmul-precision too. Where there is a GPU it is used, but with CUDA_VISIBLE_DEVICES="". Columns:

update_ms      one update with its batch and noise, the median of blocks of updates
floor_ms       the multiply-adds of the update's matrix products, at the rate of the product
               (batch x K) x width x width, measured beside it (gflop_per_s)
ratio          update_ms / floor_ms
action_ms      acting on one observation

With F = 2 x batch x weights, the floor counts (K + 4) F_actor + 12 F_critic; at K = 1, where there
is nothing to route, 4 F_actor + 12 F_critic; for FQL 13 F_flow + 4 F_actor + 12 F_critic.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are

import drol  # noqa: E402
import fql  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
HARDWARE = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"


@dataclass
class Args:
    k: tuple[PositiveInt, ...] = (1, 16, 64)  # numbers of candidates
    matmul_precision: tuple[Literal["highest", "high", "medium"], ...] = (
        ("highest", "high", "medium") if GPU else ("highest",)
    )
    observation_dim: PositiveInt = 69  # humanoidmaze's
    action_dim: PositiveInt = 21
    hidden_dims: tuple[PositiveInt, ...] = (512, 512, 512, 512)
    batch_size: PositiveInt = 256
    seconds: PositiveFloat = 5.0  # how long each time is measured


@dataclass
class BenchArgs(Args):
    compile: bool = True  # time compiled updates as well; needs a compiler
    out: Path = Path("runs/bench.csv")


def methods(args):
    """(name, program, its settings) of each method."""
    sizes = {"batch_size": args.batch_size, "hidden_dims": args.hidden_dims}
    chosen = [(f"DROL K = {k}", drol, {"k": k}) for k in args.k]
    for name, program, flags in [*chosen, ("FQL", fql, {})]:
        settings = program.Args("humanoidmaze-medium", **sizes, **flags)
        program.resolve(settings)
        yield name, program, settings


def make_run(program, settings, args, folder):
    """A run as training holds it, at its start or its checkpoint in the folder."""
    dims = (args.observation_dim, args.action_dim, args.hidden_dims)
    return program.Run(settings, "random data", Path(folder), dims)


def random_data(args, rows=10_000):
    """What load_data returns, of random numbers in [0, 1]."""
    shapes = {
        "observations": (rows, args.observation_dim),
        "actions": (rows, args.action_dim),
        "next_observations": (rows, args.observation_dim),
        "rewards": (rows,),
        "masks": (rows,),
    }
    return {key: torch.rand(shape, device=DEVICE) for key, shape in shapes.items()}


def make_update(program, run, data, loss_fn):
    """A function without arguments: the next update of a run, as in training."""

    def update():
        batch = program.sample_batch(data, run.args.batch_size, run.batch_generator)
        noise = program.sample_noise(run.args, run.dims[1], run.noise_generator)
        return program.update(run.networks, run.optimizer, batch, noise, run.args, loss_fn)

    return update


def median_ms(function, seconds):
    """Median wall time of a call in ms. A GPU is waited for at the ends of a block of calls, since
    training goes on while it works."""
    wait = torch.cuda.synchronize if GPU else lambda: None
    block = 50 if GPU else 1
    times = []
    for _ in range(5):  # compiles, and records CUDA graphs
        function()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        for _ in range(block):
            function()
        wait()
        times.append((time.perf_counter() - start) / block)
    return 1e3 * statistics.median(times)


def floor_flops(run):
    """Multiply-adds, times two, of the matrix products that an update cannot do without."""
    args = run.args
    flops = {
        name: 2 * args.batch_size * sum(p.numel() for p in network.parameters() if p.ndim == 2)
        for name, network in run.networks.items()
    }
    total = 4 * flops["actor"] + 6 * flops["critic"]  # of two networks
    if "flow" in flops:
        return total + (args.flow_steps + 3) * flops["flow"]
    return total + (args.k * flops["actor"] if args.k > 1 else 0)


def measure(program, settings, compiled, args):
    """The times of one row."""
    torch.compiler.reset()  # else the limit of recompilations ends in eager
    mode = "reduce-overhead" if GPU else "default"  # as in the programs
    loss_fn = torch.compile(program.losses, mode=mode) if compiled else program.losses
    with TemporaryDirectory() as folder:
        run = make_run(program, settings, args, folder)
        run.writer.close()
    update_ms = median_ms(make_update(program, run, random_data(args), loss_fn), args.seconds)

    observation, actor = np.zeros(args.observation_dim), run.networks["actor"]
    act = lambda: program.act(actor, observation, args.action_dim, run.noise_generator)
    action_ms = median_ms(act, args.seconds / 5)

    rows, width = args.batch_size * getattr(settings, "k", 1), max(1, *args.hidden_dims)
    left = torch.rand(rows, width, device=DEVICE)
    right = torch.rand(width, width, device=DEVICE)
    flop_per_ms = 2 * rows * width**2 / median_ms(lambda: left @ right, args.seconds / 5)
    floor_ms = floor_flops(run) / flop_per_ms
    return {
        "update_ms": round(update_ms, 3),
        "floor_ms": round(floor_ms, 3),
        "ratio": round(update_ms / floor_ms, 3),
        "action_ms": round(action_ms, 4),
        "gflop_per_s": round(flop_per_ms / 1e6, 1),
    }


def show(cells):
    """Prints one line of a table."""
    print("".join(f"{cell!s:<17}" for cell in cells), flush=True)


def main(argv=None):
    args = tyro.cli(BenchArgs, args=argv, description=__doc__.split("\n\n")[0])
    sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.open("a").close()  # fails now rather than after the first row
    except OSError as error:
        sys.exit(f"error: --out {args.out} cannot be written: {error.strerror}")
    sizes = {
        "device": HARDWARE,
        "batch_size": args.batch_size,
        "hidden_dims": " ".join(map(str, args.hidden_dims)),
        "observation_dim": args.observation_dim,
        "action_dim": args.action_dim,
        "torch": torch.__version__,
    }
    print(*sizes.values(), sep=", ")
    modes = ("eager", "compile") if args.compile else ("eager",)
    rows = []
    cases = itertools.product(methods(args), args.matmul_precision, modes)
    for (name, program, settings), precision, mode in cases:
        torch.set_float32_matmul_precision(precision)
        row = {"method": name, "mode": mode, "matmul_precision": precision}
        row |= measure(program, settings, mode == "compile", args)
        if not rows:
            show(row)
        show(row.values())
        rows.append(row | sizes)
        pd.DataFrame(rows).to_csv(args.out, index=False)
    print(args.out)


if __name__ == "__main__":
    main()

"""Times an update and an action of DROL for several K, and of FQL: python -m tools.bench

Random data, and the functions that training uses, eager and compiled. Medians, in ms. Where there
is a GPU it is used, but with CUDA_VISIBLE_DEVICES=""; it is waited for at the ends of a block of
updates. TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 multiplies in TF32 there (matmul_precision high).
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import tyro
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch.utils.benchmark import Timer

import drol
import fql

GPU = torch.cuda.is_available()


@dataclass
class Args:
    k: tuple[PositiveInt, ...] = (1, 16, 64)  # numbers of candidates
    observation_dim: PositiveInt = 69  # humanoidmaze's
    action_dim: PositiveInt = 21
    hidden_dims: tuple[PositiveInt, ...] = (512, 512, 512, 512)
    batch_size: PositiveInt = 256
    compile: bool = True  # time compiled updates as well; needs a compiler
    seconds: PositiveFloat = 5.0  # how long each time is measured
    out: Path = Path("runs/bench.csv")


def random_data(args, rows=10_000):
    """Data of random numbers in [0, 1], as training has it."""
    shapes = {"observations": (rows, args.observation_dim), "actions": (rows, args.action_dim)}
    shapes |= {"next_observations": shapes["observations"], "rewards": (rows,), "masks": (rows,)}
    return {key: torch.rand(shapes[key], device="cuda" if GPU else "cpu") for key in drol.ARRAYS}


def median_ms(function, seconds):
    """Median time of a call in ms, after five that compile and record CUDA graphs."""
    for _ in range(5):
        function()
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=seconds).median


def measure(program, settings, compiled, args):
    """ms per update and per action."""
    torch.compiler.reset()  # else the limit of recompilations ends in eager
    data = random_data(args)
    with TemporaryDirectory() as folder:
        run = program.Run(settings, Path(folder), data)
        run.writer.close()
    loss_fn = program.total_loss
    if compiled:  # as in train
        loss_fn = torch.compile(loss_fn, mode="reduce-overhead")

    def update():
        batch = program.sample_batch(data, settings.batch_size, run.generators["batch"])
        noise = program.sample_noise(settings, args.action_dim, run.generators["noise"])
        program.update(run.networks, run.optimizer, batch, noise, settings, loss_fn)

    observation, actor = np.zeros(args.observation_dim), run.networks.actor
    act = lambda: program.act(actor, observation, args.action_dim, run.generators["noise"])
    times = {"update_ms": median_ms(update, args.seconds)}
    return times | {"action_ms": median_ms(act, args.seconds / 5)}


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.partition("\n\n")[0])
    what = f"--out {args.out} cannot be written"
    out = drol.attempt(what, args.out.expanduser)
    drol.attempt(what, out.parent.mkdir, parents=True, exist_ok=True)
    drol.attempt(what, lambda: out.open("a").close())  # now rather than after the first row
    conditions = {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name()
        if GPU
        else f"CPU, {torch.get_num_threads()} threads",
        "batch_size": args.batch_size,
        "hidden_dims": " ".join(map(str, args.hidden_dims)),
        "observation_dim": args.observation_dim,
        "action_dim": args.action_dim,
        "torch": torch.__version__,
    }
    print(*conditions.values(), sep=", ")
    sizes = {"hidden_dims": args.hidden_dims, "batch_size": args.batch_size}
    methods = [(f"DROL K = {k}", drol, {"k": k}) for k in args.k]
    rows = []
    for name, program, flags in [*methods, ("FQL", fql, {})]:
        settings, _ = program.resolve(program.Args("humanoidmaze-medium", **sizes, **flags))
        for mode in ("eager", "compile")[: 1 + args.compile]:
            times = measure(program, settings, mode == "compile", args)
            print(f"{name:<12}  {mode:<8}", *(f"{key} {ms:<9.4g}" for key, ms in times.items()))
            rows.append({"method": name, "mode": mode} | times | conditions)
            pd.DataFrame(rows).to_csv(out, index=False)
    print(out)


if __name__ == "__main__":
    main()

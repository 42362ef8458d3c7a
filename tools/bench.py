"""Times an update and an action of DROL for several K and of FQL, beside a floor for the update.

    python tools/bench.py --k 1 4 8 16 32 64 --observation-dim 69 --action-dim 21

Each method runs in a process of its own, on random data, through the functions that training uses.
Times are medians of torch.utils.benchmark, after its warm-up:

update_ms      one update with its batch and noise
floor_ms       the multiply-adds of the update's matrix products, at the float32 rate of the product
               (batch x K) x width x width, measured in the same process (gflop_per_s)
ratio          update_ms / floor_ms
action_ms      acting on one observation
peak_mb        the process's memory (CPU) or torch's (GPU)

With F = 2 x batch x weights, the floor counts (K + 4) F_actor + 12 F_critic; at K = 1, where there
is nothing to route, 4 F_actor + 12 F_critic; for FQL 13 F_flow + 4 F_actor + 12 F_critic.
"""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import tyro
from torch.utils import benchmark

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py and fql.py are
import drol  # noqa: E402
import fql  # noqa: E402


@dataclass
class Args:
    k: tuple[int, ...] = (1, 4, 8, 16, 32, 64)  # numbers of candidates
    fql: bool = True  # measure FQL as well
    observation_dim: int = 69  # humanoidmaze's
    action_dim: int = 21
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    batch_size: int = 256
    routing_dtype: Literal["float32", "bfloat16"] = "float32"  # precision of DROL's routing
    seconds: float = 5.0  # how long each time is measured
    compile: Literal["on", "off"] = "off"  # as in training
    device: str = "auto"  # auto (the GPU if there is one), cpu, cuda or cuda:N
    out: Path = Path("runs/bench.csv")


def median_ms(function, seconds):
    """Median wall time of one call in ms. The timer waits for the GPU."""
    timer = benchmark.Timer("function()", globals={"function": function},
                            num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def random_data(args, generator):
    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=generator.device) * 2 - 1

    rows = 10_000
    return {"observations": rand(rows, args.observation_dim),
            "actions": rand(rows, args.action_dim),
            "next_observations": rand(rows, args.observation_dim),
            "rewards": rand(rows), "masks": torch.ones(rows, device=generator.device)}


def update_flops(networks, batch_size, k):
    """Multiply-adds, times two, of the matrix products that an update cannot do without."""
    def flops(network):
        weights = sum(p.numel() for p in network.parameters() if p.ndim == 2)
        return 2 * batch_size * weights

    total = 4 * flops(networks["actor"]) + 12 * flops(networks["critic"][0])
    if k is None:
        total += 13 * flops(networks["flow"])
    elif k > 1:
        total += k * flops(networks["actor"])
    return total


def measure(args, k):
    """One row of the CSV. k: None for FQL."""
    program = fql if k is None else drol
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if args.device == "auto" and has_gpu else
                          args.device.replace("auto", "cpu"))
    settings = program.Args(env_id="", batch_size=args.batch_size, hidden_dims=args.hidden_dims)
    settings.discount, settings.q_agg = 0.99, "mean"
    settings.bc_coef, settings.alpha, settings.k = 1.0, 10.0, k
    settings.routing_dtype = args.routing_dtype
    networks = program.make_networks(args.observation_dim, args.action_dim, args.hidden_dims,
                                     torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.Adam(networks.parameters(), lr=settings.lr, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    data = random_data(args, generator)
    losses = torch.compile(program.losses) if args.compile == "on" else program.losses

    def update():
        index = torch.randint(len(data["rewards"]), (args.batch_size,), generator=generator,
                              device=device)
        batch = {key: tensor[index] for key, tensor in data.items()}
        noise = program.sample_noise(args.batch_size, args.action_dim, settings, generator)
        program.update(networks, optimizer, batch, noise, settings, losses)

    update_ms = median_ms(update, args.seconds)
    if device.type == "cuda":
        peak, name = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        name = f"CPU, {torch.get_num_threads()} threads"

    observation = torch.zeros(args.observation_dim).numpy()
    actor = networks["actor"]
    action_ms = median_ms(lambda: program.act(actor, observation, args.action_dim, generator),
                          args.seconds / 5)

    rows, width = args.batch_size * (k or 1), max(args.hidden_dims)
    left, right = torch.rand(rows, width, device=device), torch.rand(width, width, device=device)
    out = torch.empty(rows, width, device=device)
    product_ms = min(median_ms(lambda: torch.mm(left, right, out=out), args.seconds / 10)
                     for _ in range(3))
    flop_per_ms = 2 * rows * width**2 / product_ms
    floor_ms = update_flops(networks, args.batch_size, k) / flop_per_ms
    return {
        "method": "FQL" if k is None else f"DROL K = {k}",
        "update_ms": round(update_ms, 3),
        "floor_ms": round(floor_ms, 3),
        "ratio": round(update_ms / floor_ms, 3),
        "action_ms": round(action_ms, 4),
        "peak_mb": round(peak / 2**20),
        "gflop_per_s": round(flop_per_ms / 1e6, 1),
        "mode": "compile" if args.compile == "on" else "eager",
        "routing_dtype": "" if k is None else args.routing_dtype,
        "device": name,
        "batch_size": args.batch_size,
        "hidden_dims": " ".join(map(str, args.hidden_dims)),
        "observation_dim": args.observation_dim,
        "action_dim": args.action_dim,
        "seconds": args.seconds,
        "torch": torch.__version__,
    }


def check(args):
    """Raises UserError for what cannot be measured."""
    if not args.k and not args.fql:
        raise drol.UserError("give --k, --fql or both")
    counts = [*args.k, *args.hidden_dims, args.batch_size, args.observation_dim, args.action_dim]
    if min(counts) < 1 or not args.hidden_dims or args.seconds <= 0:
        raise drol.UserError("give 1 or more to --k, --batch-size, --hidden-dims and the "
                             "dimensions, and more than 0 to --seconds")
    if args.device != "auto":
        try:
            torch.zeros(1, device=args.device)
        except (RuntimeError, AssertionError) as error:
            raise drol.UserError(f"--device {args.device} does not work ({error})") from error


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    methods = list(args.k)
    if args.fql:
        methods.append(None)
    rows = []
    try:
        check(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
            for k in methods:
                rows.append(pool.submit(measure, args, k).result())
                print("{method:<12} {update_ms:>9} ms per update, floor {floor_ms:>9} ms, ratio "
                      "{ratio}; {action_ms} ms per action; {peak_mb} MB; {mode}".format(**rows[-1]),
                      flush=True)
                pd.DataFrame(rows).to_csv(args.out, index=False)
    except (drol.UserError, OSError, torch.OutOfMemoryError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(args.out)


if __name__ == "__main__":
    main()

"""Times an update and an action of DROL for several K and of FQL, beside the arithmetic that they cannot do without.

    python tools/bench.py --k 1 4 8 16 32 64 --observation-dim 69 --action-dim 21

Each method runs in a process of its own, on random data, through the functions that training uses. update_ms is the
median of an update with its batch and noise, action_ms of acting on one observation. floor_ms: the multiply-adds of the
update's matrix products, at the float32 rate of the product (batch x K) x width x width measured in the same process.
F being 2 x batch x weights, that is (K + 4) F_actor + 12 F_critic, or 4 F_actor + 12 F_critic at K = 1, where there is
nothing to route; FQL: 13 F_flow + 4 F_actor + 12 F_critic. peak_mb: the process's memory (CPU) or torch's (GPU).
"""

import csv
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

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
    updates: int = 40  # updates timed, after a tenth as many to warm up
    mode: Literal["default", "eager", "compile"] = "default"  # how the losses run; default: as in a long run
    device: str = "auto"
    out: Path = Path("runs/bench.csv")


def median_ms(function, count, synchronize):
    """Median wall time of a call in ms, after count / 10 + 3 calls to warm up."""
    times = []
    for i in range(count + count // 10 + 3):
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[-count:])


def measure(args, k):
    """One row of the CSV. k: None for FQL."""
    program, device = (fql if k is None else drol), drol.pick_device(args.device)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    O, A, B = args.observation_dim, args.action_dim, args.batch_size
    settings = program.Args(env_id="", batch_size=B, hidden_dims=args.hidden_dims)
    settings.discount, settings.q_agg, settings.bc_coef, settings.alpha, settings.k = 0.99, "mean", 1.0, 10.0, k
    networks = program.make_networks(O, A, args.hidden_dims, torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.Adam(networks.parameters(), lr=settings.lr, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=generator, device=device) * 2 - 1
    data = {"observations": rand(10_000, O), "actions": rand(10_000, A), "next_observations": rand(10_000, O),
            "rewards": rand(10_000), "masks": torch.ones(10_000, device=device)}
    compiled = {"default": device.type == "cpu", "eager": False, "compile": True}[args.mode]
    losses = program.compile_losses(device) if compiled else program.losses

    def update():
        batch = program.sample_batch(data, B, generator)
        noise = program.sample_noise(B, A, settings, generator)
        program.update(networks, optimizer, batch, noise, settings, losses)

    update_ms = median_ms(update, args.updates, synchronize)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows, width = B * (k or 1), max(args.hidden_dims)
    left, right, out = rand(rows, width), rand(width, width), torch.empty(rows, width, device=device)
    product_ms = min(median_ms(lambda: torch.mm(left, right, out=out), 20, synchronize) for _ in range(3))
    rate = 2 * rows * width**2 / product_ms / 1e6  # GFLOP/s
    observation = torch.zeros(O).numpy()
    action_ms = median_ms(lambda: program.act(networks["actor"], observation, A, generator), 200, synchronize)
    F = lambda network: 2 * B * sum(weight.numel() for weight in network.parameters() if weight.ndim == 2)
    F_actor, F_critic = F(networks["actor"]), F(networks["critic"][0])
    flops = (4 + (k if k and k > 1 else 0)) * F_actor + 12 * F_critic
    flops += 13 * F(networks["flow"]) if k is None else 0
    floor_ms = flops / rate / 1e6
    return {"method": "FQL" if k is None else f"DROL K = {k}", "update_ms": f"{update_ms:.3f}",
            "floor_ms": f"{floor_ms:.3f}", "ratio": f"{update_ms / floor_ms:.3f}", "action_ms": f"{action_ms:.4f}",
            "peak_mb": f"{peak / 2**20:.0f}", "gflop_per_s": f"{rate:.1f}",
            "mode": "compile" if losses is not program.losses else "eager",
            "device": torch.cuda.get_device_name() if device.type == "cuda" else
            f"CPU, {torch.get_num_threads()} threads",
            "batch_size": B, "hidden_dims": " ".join(map(str, args.hidden_dims)), "observation_dim": O, "action_dim": A,
            "updates": args.updates, "torch": torch.__version__}


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    if not args.k and not args.fql:
        sys.exit("error: give --k, --fql or both")
    if min((*args.k, args.updates, args.batch_size, args.observation_dim, args.action_dim, *args.hidden_dims)) < 1:
        sys.exit("error: give 1 or more to --k, --updates, --batch-size, --hidden-dims and the dimensions")
    rows = []
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            for k in (*args.k, *[None] * args.fql):
                rows.append(pool.submit(measure, args, k).result())
                print("{method:<12} {update_ms:>9} ms an update, floor {floor_ms:>9} ms, ratio {ratio}; "
                      "{action_ms} ms an action; {peak_mb} MB; {mode}".format(**rows[-1]), flush=True)
                with open(args.out, "w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
        print(args.out)
    except (drol.UserError, OSError, RuntimeError) as error:  # RuntimeError: no memory
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()

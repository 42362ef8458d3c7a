"""Tests of both programs on a GPU, with small networks. Without one they are skipped."""

import pytest
import torch

import drol
from tests.helpers import command, every_program, random_batch, run_of, same_weights, saved

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def train(program, folder, *flags):
    """The folder of a run in the fake environment, as from the command line."""
    program.main(command(None, folder, "--device", "cuda", *flags, program=program))
    return run_of(folder)


def parts_of(program):
    """What an update takes, alike in every call."""
    args = program.Args("humanoidmaze-medium", batch_size=64, hidden_dims=(64, 64))
    args, _, _ = program.resolve(args)
    networks = program.make_networks(6, 3, args.hidden_dims, drol.make_generator("cpu", 0))
    networks = networks.to("cuda")
    optimizer = torch.optim.Adam(networks.parameters(), lr=args.lr, fused=True)
    data = {key: x.to("cuda") for key, x in random_batch(1000, 6, 3).items()}
    generator = drol.make_generator("cuda", 1)
    batch = program.sample_batch(data, args.batch_size, generator)
    return networks, optimizer, batch, program.sample_noise(args, 3, generator), args


def gradient(program, loss_fn):
    """The gradient of a loss as one vector, and its largest number."""
    networks, _, batch, noise, args = parts_of(program)
    loss_fn(networks, batch, noise, args)[0].backward()
    vector = torch.cat([x.grad.flatten() for x in networks.parameters() if x.requires_grad])
    return vector, vector.abs().max()


@every_program
def test_an_update_stays_on_the_gpu_and_waits_for_nothing(program):
    networks, optimizer, batch, noise, args = parts_of(program)
    torch.cuda.set_sync_debug_mode("error")  # raises where something waits
    try:
        metrics = program.update(networks, optimizer, batch, noise, args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state = [x for values in optimizer.state.values() for x in values.values()]
    tensors = [*networks.parameters(), *state, *batch.values(), *noise.values(), *metrics.values()]
    assert {x.device.type for x in tensors} == {"cuda"}


@every_program
def test_compiled_gradients_are_the_eager_ones(program):
    """Within rounding; in the mode of training, and again once CUDA graphs are recorded."""
    eager, largest = gradient(program, program.total_loss)
    compiled = torch.compile(program.total_loss, mode="reduce-overhead")
    for _ in range(3):
        assert (gradient(program, compiled)[0] - eager).abs().max() < 1e-4 * largest


@every_program
def test_tf32_changes_little(program):
    """It is off by default."""
    exact, largest = gradient(program, program.total_loss)
    torch.set_float32_matmul_precision("high")
    rounded, _ = gradient(program, program.total_loss)
    torch.set_float32_matmul_precision("highest")
    assert (rounded - exact).abs().max() < 0.05 * largest
    if torch.cuda.get_device_capability() >= (8, 0):  # older cards have no TF32
        assert not torch.equal(rounded, exact)


@every_program
def test_repeated_and_resumed_runs_are_equal_to_the_bit(program, tmp_path):
    first = train(program, tmp_path / "first")
    assert same_weights(first, train(program, tmp_path / "second"))
    train(program, tmp_path / "third", "--steps", 10)
    assert same_weights(first, train(program, tmp_path / "third"))


@every_program
def test_a_compiled_run_is_near_an_eager_one_and_plays_on_a_cpu(program, tmp_path):
    """20 steps of Adam move a weight by about 20 x 3e-4, and rounding may decide where to."""
    eager = saved(train(program, tmp_path / "eager"))["networks"]
    run = train(program, tmp_path / "compiled", "--compile")
    assert all((x - eager[name]).abs().max() < 0.012 for name, x in saved(run)["networks"].items())
    actions = program.load_policy(run / "checkpoint.pt", "cpu")([[0.0, 0.0]])
    assert actions.shape == (1, 2) and abs(actions).max() <= 1

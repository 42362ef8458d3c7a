"""Tests of the GPU path without a GPU: an update never waits for the device or mixes devices, and
launches few operations."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import every_program, random_batch

# Operations that launch work, per update at K = 16 with the published four hidden layers: forward,
# backward, target and Adam. Measured: 268 and 413. A change that needs more should be worth it.
CEILING = {"drol": 270, "fql": 415}
LERP = torch.ops.aten._foreach_lerp_.Scalar


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and x.device.type == "cpu":
                raise RuntimeError(f"{func} of a tensor on the CPU")
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Lists the operations that are more than another view of a tensor."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not func.is_view:
            self.operations.append(func)
        return func(*args, **(kwargs or {}))


class MetaGenerator(torch.Generator):
    """In the place of a GPU's generator. The meta device draws nothing and has none."""

    device = torch.device("meta")


def parts_of(program, device, **settings):
    """What update takes, on a device that may have no random numbers."""
    args = program.Args(env_id="humanoidmaze-medium", batch_size=8, **settings)
    program.resolve(args)
    networks = program.make_networks(5, 3, args.hidden_dims, torch.Generator().manual_seed(0))
    networks = networks.to(device)
    if device == "meta":  # Adam counts on the CPU there, fused Adam on a GPU does not
        optimizer = torch.optim.SGD(networks.parameters(), lr=args.lr)
    else:
        optimizer = torch.optim.Adam(networks.parameters(), lr=args.lr, fused=True)
    batch = {key: x.to(device) for key, x in random_batch(8, 5, 3).items()}
    noise = program.sample_noise(args, 3, torch.Generator().manual_seed(0))
    return networks, optimizer, batch, {key: x.to(device) for key, x in noise.items()}, args


@every_program
def test_an_update_needs_no_value_and_no_other_device(program):
    """A tensor on the meta device has no values, so that whatever would wait for one raises."""
    networks, optimizer, data, _, args = parts_of(program, "meta", hidden_dims=(16, 16))
    with OneDevice():
        batch = program.sample_batch(data, 8, MetaGenerator())
        noise = program.sample_noise(args, 3, MetaGenerator())
        metrics = program.update(networks, optimizer, batch, noise, args)
    assert {x.device.type for x in metrics.values()} == {"meta"}
    assert not any(x.requires_grad for x in metrics.values())


@every_program
@pytest.mark.parametrize("fault, message", [
    (lambda loss: loss * loss.item(), r"item\(\) cannot be called on meta"),
    (lambda loss: loss if loss > 0 else -loss, r"item\(\) cannot be called on meta"),
    (lambda loss: loss + loss[None][loss[None] > 0].sum(), "nonzero"),
    (lambda loss: loss * torch.ones(()), "mul.Tensor of a tensor on the CPU"),
    (lambda loss: loss * torch.ones(()).to("meta"), "copy.default of a tensor on the CPU"),
], ids=["item", "if", "boolean mask", "tensor of the CPU", "copy from the CPU"])  # fmt: skip
def test_the_test_above_notices(program, fault, message):
    def losses(*parts):
        loss, metrics = program.losses(*parts)
        return fault(loss), metrics

    parts = parts_of(program, "meta", hidden_dims=(16, 16))
    with pytest.raises((RuntimeError, NotImplementedError), match=message), OneDevice():
        program.update(*parts, losses)


@every_program
def test_an_update_launches_few_operations(program):
    parts = parts_of(program, "cpu")
    program.update(*parts)  # Adam's state
    with Launches() as launches:
        program.update(*parts)
    count, ceiling = len(launches.operations), CEILING[program.ALGORITHM]
    assert ceiling - 20 < count <= ceiling


@every_program
def test_an_update_frees_the_old_gradients_before_it_needs_memory(program):
    *parts, args = parts_of(program, "cpu", hidden_dims=(16, 16))
    freed = []

    def losses(networks, *rest):
        freed.append(all(parameter.grad is None for parameter in networks.parameters()))
        return program.losses(networks, *rest)

    for _ in range(2):
        program.update(*parts, args, losses)
    assert freed == [True, True]


@every_program
def test_the_target_moves_by_one_operation_to_the_bit_of_a_loop(program):
    networks, optimizer, batch, noise, args = parts_of(program, "cpu", hidden_dims=(16, 16))
    for parameter in networks["target_critic"].parameters():
        parameter.data += 0.1
    before = copy.deepcopy(networks)
    with Launches() as launches:
        program.update(networks, optimizer, batch, noise, args)
    assert [func for func in launches.operations if "lerp" in func.name()] == [LERP]
    with torch.no_grad():
        for target, source in zip(
            before["target_critic"].parameters(), before["critic"].parameters(), strict=True
        ):
            target.lerp_(source, args.tau)
    for ours, loop in zip(
        networks["target_critic"].parameters(), before["target_critic"].parameters(), strict=True
    ):
        assert torch.equal(ours, loop)

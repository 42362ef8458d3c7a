"""Tests of the GPU path without a GPU: an update never waits for the device or mixes devices, and
launches few operations."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import every_program, random_batch

# Operations that launch work, per update at K = 16 with the published four hidden layers: forward,
# backward, target and Adam. A change that needs more should be worth it.
CEILING = {"drol": 270, "fql": 415}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            assert not (isinstance(x, torch.Tensor) and x.device.type == "cpu"), func
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Counts the operations that are more than another view of a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = [value.alias_info for value in func._schema.returns]
        self.count += any(alias is None or alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


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
    parts = parts_of(program, "meta", hidden_dims=(16, 16))
    with OneDevice():
        metrics = program.update(*parts)
    assert {x.device.type for x in metrics.values()} == {"meta"}
    assert not any(x.requires_grad for x in metrics.values())


@every_program
@pytest.mark.parametrize("fault", [
    lambda loss: loss * loss.item(),
    lambda loss: loss if loss > 0 else -loss,
    lambda loss: loss + loss.expand(3)[loss.expand(3) > 0].sum(),
    lambda loss: loss * torch.ones(()),
], ids=["item", "if", "boolean mask", "tensor of the CPU"])  # fmt: skip
def test_the_test_above_notices(program, fault):
    def losses(*parts):
        loss, metrics = program.losses(*parts)
        return fault(loss), metrics

    with pytest.raises(Exception), OneDevice():  # noqa: B017, of several kinds
        program.update(*parts_of(program, "meta", hidden_dims=(16, 16)), losses)


@every_program
def test_an_update_launches_few_operations(program):
    parts = parts_of(program, "cpu")
    program.update(*parts)  # Adam's state
    with Launches() as launches:
        program.update(*parts)
    ceiling = CEILING[program.ALGORITHM]
    assert ceiling - 20 < launches.count <= ceiling, launches.count


@every_program
def test_the_target_moves_by_one_operation_to_the_bit_of_a_loop(program):
    networks, optimizer, batch, noise, args = parts_of(program, "cpu", hidden_dims=(16, 16))
    for parameter in networks["target_critic"].parameters():
        parameter.data += 0.1
    before = copy.deepcopy(networks)
    program.update(networks, optimizer, batch, noise, args)
    with torch.no_grad():
        for target, source in zip(
            before["target_critic"].parameters(), before["critic"].parameters(), strict=True
        ):
            target.lerp_(source, args.tau)
    for ours, loop in zip(
        networks["target_critic"].parameters(), before["target_critic"].parameters(), strict=True
    ):
        assert torch.equal(ours, loop)

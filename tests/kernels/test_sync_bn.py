"""sync_bn by itself, against nn.BatchNorm2d on the whole batch; in processes: tests/training/test_distributed.py."""

import copy

import pytest
import torch
from torch import nn

from resnet_min.kernels import sync_bn


def alone(figures):
    """The gather of a world of one."""
    return figures[None]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("residual, relu", [(False, False), (False, True), (True, True)])
def test_one_process_normalises_as_batch_norm_does(residual, relu, momentum):
    wanted = nn.BatchNorm2d(5, momentum=momentum).double()
    nn.init.uniform_(wanted.weight)
    nn.init.normal_(wanted.bias)
    got = sync_bn.SyncBatchNorm(copy.deepcopy(wanted), alone)
    for _ in range(2):
        x, other, grad = torch.randn(3, 4, 5, 6, 7, dtype=torch.float64)
        outcomes = []
        for bn in (wanted, got):
            inputs = [x.clone().requires_grad_(), other.clone().requires_grad_()]
            if bn is got:
                out = bn(inputs[0], inputs[1] if residual else None, relu)
            else:
                out = bn(inputs[0]) + inputs[1] * residual
                out = out.relu() if relu else out
            wrt = [inputs[0], bn.weight, bn.bias] + inputs[1:] * residual
            outcomes.append([out, *torch.autograd.grad(out, wrt, grad), *bn.buffers()])
        torch.testing.assert_close(outcomes[1], outcomes[0])


def test_shards_merge_to_the_whole_batch():
    """One of them empty, one of one image; values far from zero, so that plain sums of squares would cancel."""
    x, gamma = 1e4 + torch.randn(7, 3, 4, 4, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    parts = torch.stack([sync_bn.moments(part, gamma) for part in x.split([4, 0, 1, 2])])
    count, mean, distances = sync_bn.merged(parts)
    assert (count == 7 * 16).all()
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(distances / count, x.var((0, 2, 3), correction=0))


def test_one_value_a_channel_is_refused():
    bn = sync_bn.SyncBatchNorm(nn.BatchNorm2d(3), alone)
    with pytest.raises(ValueError, match="more than 1 value per channel in a batch; got 1"):
        bn(torch.randn(1, 3, 1, 1))
    assert bn.running_var.isfinite().all()


def test_the_sums_of_an_empty_shard_are_zeros_of_each_channel():
    x, figures = torch.zeros(0, 3, 4, 4), torch.ones(3)
    assert sync_bn.gradient_sums(x, x, figures, figures, figures).equal(torch.zeros(2, 3, dtype=torch.float64))

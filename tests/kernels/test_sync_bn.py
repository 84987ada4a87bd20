"""sync_bn by itself, against nn.BatchNorm2d on the whole batch; in processes: tests/training/test_distributed.py."""

import copy

import pytest
import torch
from torch import nn

from resnet_min.kernels import sync_bn

from .conftest import needs_extension, outcomes_by_threads
from .test_bn_add_relu import DTYPES, FLAGS, TOLERANCE, draw


def alone(figures):
    """The gather of a world of one."""
    return figures[None]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("residual, relu", [(False, False), (False, True), (True, True)])
def test_one_process_normalises_as_batch_norm_does(residual, relu, momentum, backend):
    wanted = nn.BatchNorm2d(5, momentum=momentum).double()
    nn.init.uniform_(wanted.weight)
    nn.init.normal_(wanted.bias)
    got = sync_bn.SyncBatchNorm(copy.deepcopy(wanted), alone)
    for _ in range(2):
        x, _, _, other, grad = draw((4, 5, 6, 7), torch.float64)
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
    x = 1e4 + torch.randn(7, 3, 4, 4, dtype=torch.float64)
    parts = torch.stack([sync_bn.Reference.bn_moments(part) for part in x.split([4, 0, 1, 2])])
    count, mean, distances = sync_bn.merged(parts)
    assert (count == 7 * 16).all()
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(distances / count, x.var((0, 2, 3), correction=0))


def test_a_channel_that_is_constant_in_a_shard(backend):
    """As of black images: its variance is zero, and torch's invstd of that, without eps, is zero too."""
    bn = sync_bn.SyncBatchNorm(nn.BatchNorm2d(3), alone)
    out = bn(torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    assert torch.equal(out, torch.zeros_like(out)) and torch.equal(bn.running_var, torch.full((3,), 0.9))


def test_one_value_a_channel_is_refused():
    bn = sync_bn.SyncBatchNorm(nn.BatchNorm2d(3), alone)
    with pytest.raises(ValueError, match="more than 1 value per channel in a batch; got 1"):
        bn(torch.randn(1, 3, 1, 1))
    assert bn.running_var.isfinite().all()


# ---- the compiled passes ----


def passes(passes, x, gamma, beta, residual, grad, relu):
    """All that the four passes give, with the batch's figures and two others."""
    count, mean, distances = moments = passes.bn_moments(x)
    mean, invstd = (t.to(gamma.dtype) for t in (mean + 0.1, (distances / count.clamp(1) + 0.1).rsqrt()))
    figures = x, gamma, beta, mean, invstd
    out = passes.bn_apply(*figures, residual, relu)
    given = residual if relu else None  # where their outputs are rounded differently, so would be their masks
    sums, masked = passes.bn_gradient_sums(grad, *figures, given, relu)
    grad_x = passes.bn_input_gradient(grad if given is None else masked, *figures, sums / 9, relu and given is None)
    return {"moments": moments, "out": out, "sums": sums, "masked": masked, "grad_x": grad_x}


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual, relu", FLAGS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 64, 8, 8), (1, 130, 1, 1), (0, 16, 4, 4)])
def test_passes_equal_their_references(shape, residual, relu, dtype):
    args = (*draw(shape, dtype, residual=residual), relu)
    got, wanted = passes(torch.ops.resnet_min, *args), passes(sync_bn.Reference, *args)
    for name, exact in wanted.items():
        assert got[name].dtype == exact.dtype and (got[name].stride() == exact.stride() or not exact.numel()), name
        torch.testing.assert_close(got[name], exact, **TOLERANCE[dtype], equal_nan=True, msg=name)


@needs_extension
def test_passes_give_the_same_bits_for_any_number_of_threads():
    args = (*draw((8, 48, 33, 31)), True)
    one, *others = outcomes_by_threads(lambda: passes(torch.ops.resnet_min, *args))
    assert all(torch.equal(one[name], other[name]) for other in others for name in one)


def refused_arguments():
    x, gamma, beta, residual, grad = draw((2, 4, 3, 3))
    figures, means = (gamma, beta, gamma, gamma), torch.zeros(2, 4, dtype=torch.float64)
    short, empty = (gamma[:3], *figures[1:]), torch.empty(0)
    return {
        "other layout": ("bn_moments", x.contiguous()),
        "integers": ("bn_moments", x.int()),
        "three dimensions": ("bn_moments", x[0]),
        "no channels": ("bn_moments", x[:, :0]),
        "apply: figures": ("bn_apply", x, *short, None, True),
        "apply: residual": ("bn_apply", x, *figures, residual[:1], True),
        "sums: grad": ("bn_gradient_sums", grad[..., :2], x, *figures, None, True),
        "sums: figures": ("bn_gradient_sums", grad, x, *short, None, True),
        "sums: out": ("bn_gradient_sums", grad, x, *figures, empty, True),
        "sums: out without relu": ("bn_gradient_sums", grad, x, *figures, x, False),
        "gradient: grad": ("bn_input_gradient", grad.double(), x, *figures, means, True),
        "gradient: figures": ("bn_input_gradient", grad, x, *short, means, True),
        "gradient: means": ("bn_input_gradient", grad, x, *figures, means.float(), True),
    }


@needs_extension
@pytest.mark.parametrize("name", refused_arguments())
def test_what_a_pass_does_not_take(name):
    operator, *args = refused_arguments()[name]
    with pytest.raises(ValueError, match="bn_add_relu: (the kernel does not take|x must be channels_last)"):
        getattr(torch.ops.resnet_min, operator)(*args)


@needs_extension
def test_opcheck():
    x, gamma, beta, residual, grad = draw((2, 4, 3, 3))
    figures, means = (gamma, beta, gamma, gamma), torch.zeros(2, 4, dtype=torch.float64)
    for operator, *args in (
        (torch.ops.resnet_min.bn_moments, x),
        (torch.ops.resnet_min.bn_apply, x, *figures, residual, True),
        (torch.ops.resnet_min.bn_gradient_sums, grad, x, *figures, residual, True),
        (torch.ops.resnet_min.bn_gradient_sums, grad, x, *figures, None, True),
        (torch.ops.resnet_min.bn_input_gradient, grad, x, *figures, means, True),
    ):
        torch.library.opcheck(operator.default, tuple(args))


@needs_extension
def test_shards_run_the_kernels(monkeypatch):
    called = []
    monkeypatch.setattr(sync_bn, "Reference", None)  # what would run without
    bn = sync_bn.SyncBatchNorm(nn.BatchNorm2d(4), lambda figures: called.append(figures.shape) or figures[None])
    x, _, _, residual, grad = draw((2, 4, 3, 3))
    bn(x.requires_grad_(), residual, True).backward(grad)
    assert called == [(3, 4), (2, 4)]

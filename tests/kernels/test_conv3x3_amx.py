"""The 3×3 convolution of bfloat16 by AMX: against float64 and eager PyTorch, alone and in training."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_min import ops
from resnet_min.kernels import conv3x3
from resnet_min.model import resnet

from .conftest import assert_as_close_as_eager, outcomes_by_threads, run_under

CHANNELS_LAST = torch.channels_last
pytestmark = pytest.mark.skipif(not conv3x3.HAS_AMX, reason="no AMX on this processor")


def draw(batch, inputs, outputs, size, stride=1):
    """x as a ReLU leaves it, a weight, and a gradient of the output, in bfloat16; and the stride."""
    x = torch.randn(batch, inputs, *size).relu()
    weight = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
    grad = torch.randn(batch, outputs, *(-(-side // stride) for side in size))
    return *(t.bfloat16().contiguous(memory_format=CHANNELS_LAST) for t in (x, weight, grad)), stride


def results(function, x, weight, grad, stride):
    """(output, gradient of x, gradient of weight)"""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = function(x, weight, stride)
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def eager(x, weight, stride):
    return F.conv2d(x, weight, stride=stride, padding=1)


def exact(x, weight, grad, stride):
    return results(eager, x.double(), weight.double(), grad.double(), stride)


def check(args):
    for each in zip(results(ops.conv3x3, *args), results(eager, *args), exact(*args), strict=True):
        assert_as_close_as_eager(*each)


# batch, inputs, outputs, side, stride: all of them a resnet20's and a resnet18's, and channels that fill half a tile
LAYERS = [
    (40, 16, 16, 32, 1), (40, 16, 32, 32, 2), (40, 32, 32, 16, 1), (40, 32, 64, 16, 2), (70, 64, 64, 8, 1),
    (32, 64, 64, 32, 1), (32, 64, 128, 32, 2), (32, 128, 128, 16, 1), (32, 256, 256, 8, 1), (70, 256, 512, 8, 2),
    (150, 512, 512, 4, 1), (33, 48, 80, 9, 1), (33, 80, 48, 9, 2), (31, 192, 16, 7, 2),
]  # fmt: skip


@pytest.mark.parametrize("batch, inputs, outputs, side, stride", LAYERS)
def test_every_layer_shape(batch, inputs, outputs, side, stride):
    check(draw(batch, inputs, outputs, (side, side), stride))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_tall_maps_of_one_column(width):
    """oneDNN reads beyond them where it strides."""
    check_anywhere(3, (1, 1), 130, width, 2)


def check_anywhere(batch, channels, height, width, stride):
    args = draw(batch, *(16 * number for number in channels), (height, width), stride)
    for got, true in zip(results(ops.conv3x3, *args), exact(*args), strict=True):
        torch.testing.assert_close(got.double(), true, rtol=0.01, atol=0.01 * true.abs().max().item() + 1e-6)


ANYWHERE = {
    "batch": st.integers(1, 100),
    "channels": st.tuples(*[st.integers(1, 9)] * 2),
    "height": st.integers(1, 12),
    "width": st.integers(1, 12),
    "stride": st.integers(1, 2),
}


@settings(max_examples=20, deadline=None)
@given(**ANYWHERE)
def test_anywhere(batch, channels, height, width, stride):
    check_anywhere(batch, channels, height, width, stride)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(**ANYWHERE)
def test_anywhere_at_length(batch, channels, height, width, stride):
    check_anywhere(batch, channels, height, width, stride)


@pytest.mark.parametrize("batch, channels, side, stride", [(40, 64, 8, 1), (99, 256, 4, 1), (33, 16, 7, 2)])
def test_any_number_of_threads_gives_the_same_bits(batch, channels, side, stride):
    args = draw(batch, channels, channels, (side, side), stride)
    first, *others = outcomes_by_threads(lambda: results(ops.conv3x3, *args), (1, 2, 3, 7))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


def test_layouts():
    x, weight, grad, stride = draw(33, 64, 128, (6, 5), 2)
    wanted = results(ops.conv3x3, x, weight, grad, stride)
    assert wanted[0].is_contiguous(memory_format=CHANNELS_LAST)
    spread = torch.randn(33, 64, 12, 5, dtype=torch.bfloat16)[:, :, ::2].copy_(x)
    for other in (x.contiguous(), spread):
        for got, same in zip(results(ops.conv3x3, other, weight.contiguous(), grad, stride), wanted, strict=True):
            assert torch.equal(got, same)


def test_no_images():
    out, grad_x, grad_weight = results(ops.conv3x3, *draw(0, 64, 128, (6, 5), 2))
    assert out.shape == (0, 128, 3, 3) and grad_x.shape == (0, 64, 6, 5)
    assert grad_weight.shape == (128, 64, 3, 3) and not grad_weight.any()


@pytest.mark.parametrize("side", [8, 12])
def test_nan_is_part_of_what_takes_it_and_of_nothing_else(side):
    """Not of the other images that a tile has, either."""
    x, weight, _, _ = draw(64, 64, 64, (side, side))
    x[1, 5, 4, 4] = float("nan")
    out = ops.conv3x3(x, weight)
    assert out[1, :, 3:6, 3:6].isnan().all()
    out[1, :, 3:6, 3:6] = 0
    assert out.isfinite().all()


def test_opcheck():
    x, weight, grad, stride = draw(33, 16, 32, (6, 5), 2)
    for arguments in ((x, weight), (x.clone().requires_grad_(), weight.clone().requires_grad_())):
        torch.library.opcheck(torch.ops.resnet_min.conv3x3, (*arguments, stride, False))
    torch.library.opcheck(torch.ops.resnet_min.conv3x3_backward, (grad, x, weight, stride, False, True, True))


def test_autocast_changes_nothing():
    args = draw(4, 16, 32, (12, 12), 1)
    wanted = results(ops.conv3x3, *args)
    with torch.autocast("cpu", torch.float16):
        got = results(ops.conv3x3, *args)
    assert all(map(torch.equal, got, wanted))


# ---- in the model ----


def steps(backend, dtype=torch.bfloat16):
    """Losses of five steps, and the parameters' last gradients."""
    ops.set_backend(backend)
    torch.manual_seed(0)
    net = resnet("resnet18", blocks=(1, 1), widths=(64, 128)).to(memory_format=CHANNELS_LAST)
    images = torch.randn(48, 3, 16, 16).contiguous(memory_format=CHANNELS_LAST)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(net(images), torch.arange(48) % 10)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ops.set_backend("auto")
    return losses, [p.grad for p in net.parameters()]


def test_training_under_autocast_with_and_without_kernels(monkeypatch):
    made, original = [], conv3x3.conv3x3

    def counted(x, weight, stride, winograd):
        made.append((x.dtype, weight.dtype, stride))
        return original(x, weight, stride, winograd)

    monkeypatch.setattr(conv3x3, "conv3x3", counted)
    ours, grads = steps("extension")
    bf16 = torch.bfloat16
    assert made == 5 * [(bf16, bf16, 1), (bf16, bf16, 1), (bf16, bf16, 2), (bf16, bf16, 1)]
    theirs, _ = steps("reference")
    float32, _ = steps("reference", torch.float32)
    assert ours == pytest.approx(theirs, rel=0.03) and ours == pytest.approx(float32, rel=0.03)
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_other_instruction_sets_leave_it_to_torch():
    run_under("avx2", "from resnet_min.kernels import conv3x3; assert not conv3x3.HAS_AMX")

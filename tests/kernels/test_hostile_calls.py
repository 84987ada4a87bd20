"""Operators called with arguments that do not fit: a result, or ValueError, IndexError or RuntimeError; never a crash.

Both through `resnet_min.ops`, which checks in Python, and as torch's operators, which check in C++. The same draws in
every run: 2,000 here, 100,000 with `-m slow`, which test_sanitizers runs under AddressSanitizer too.
"""

import collections
import random

import pytest
import torch

from resnet_min import ops
from resnet_min.kernels import fused_net
from resnet_min.kernels.fused_net import Layer

from .conftest import needs_extension

HUGE = (2**31, 2**40, 2**62)  # one value that stands for them all: what an operator makes of them has no room
DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.complex64,
]  # fmt: skip


def floats(*shape):
    return torch.randn(shape)


def maps(rng, channels, side=None):
    side = side or rng.randint(1, 9)
    x = floats(rng.randint(0, 3), channels, side, rng.randint(1, 9))
    return x.contiguous(memory_format=torch.channels_last) if rng.random() < 0.7 else x


def crop_flip(rng):
    count, batch, padding = rng.randint(1, 3), rng.randint(0, 4), rng.randint(0, 3)
    return [
        torch.randint(0, 256, (count, rng.randint(1, 9), rng.randint(1, 9), 3), dtype=torch.uint8),
        torch.randint(0, count, (batch,)), torch.randint(0, 2 * padding + 1, (batch, 2)),
        torch.rand(batch) < 0.5, floats(3, 256), padding,
    ]  # fmt: skip


def conv_bn_relu(rng):
    channels, outputs, size = rng.choice([1, 3, 8, 64]), rng.choice([1, 8, 17, 64]), rng.choice([1, 3])
    stride, padding = rng.randint(1, 2), rng.randint(size // 2, 2)
    x, weight = maps(rng, channels), floats(outputs, channels, size, size)
    out = torch.nn.functional.conv2d(x, weight, None, stride, padding)
    residual = torch.randn_like(out) if rng.random() < 0.5 else None
    return [x, weight, floats(outputs), residual, stride, padding, rng.random() < 0.5]


def conv3x3(rng):
    channels = rng.choice([64, 16, 8])
    x, weight = maps(rng, channels), floats(rng.choice([64, 48, channels]), channels, 3, 3)
    if rng.random() < 0.5:
        return [x, weight, 1, rng.random() < 0.5]
    return [x.bfloat16(), weight.bfloat16(), rng.choice([1, 1, 2]), rng.random() < 0.5]


def conv3x3_backward(rng):
    x, weight, stride, large_tiles = conv3x3(rng)
    grad = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, stride, 1))
    return [grad, x, weight, stride, large_tiles, rng.random() < 0.7, rng.random() < 0.7]


def bn_forward(rng):
    x = maps(rng, rng.choice([1, 3, 8, 33])).to(rng.choice([torch.float32, torch.float64, torch.bfloat16]))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    gamma, beta = (floats(x.shape[1]).to(dtype) for _ in range(2))
    return [x, gamma, beta, torch.randn_like(x) if rng.random() < 0.5 else None, 1e-5, rng.random() < 0.5]


def bn_add_relu(rng):
    args = bn_forward(rng)
    if rng.random() < 0.5:
        args += [args[1].clone(), args[1].clone(), torch.tensor(3), 0.1]
    return args


def bn_add_relu_backward(rng):
    x, gamma, beta, out, _, relu = bn_forward(rng)
    return [torch.randn_like(x), x, gamma, beta, gamma.clone(), beta.abs(), out if relu else None, relu]


def bn_moments(rng):
    return bn_forward(rng)[:1]


def bn_apply(rng):
    x, gamma, beta, residual, _, relu = bn_forward(rng)
    return [x, gamma, beta, gamma.clone(), beta.abs(), residual, relu]


def bn_gradient_sums(rng):
    return bn_add_relu_backward(rng)


def bn_input_gradient(rng):
    *figures, _, relu = bn_add_relu_backward(rng)
    return [*figures, torch.randn(2, len(figures[2]), dtype=torch.float64), relu]


def small_net(rng):
    """A stem, perhaps a pool, a block with its shortcut, and a classifier."""
    channels, width = rng.choice([1, 3]), rng.choice([4, 8, 64])
    x = maps(rng, channels, rng.randint(4, 9))
    layers = [
        Layer(fused_net.CONVOLUTION, 0, padding=1, relu=True),
        Layer(fused_net.CONVOLUTION, 1, 1, 1, padding=1, relu=True, form=rng.randint(0, 3)),
        Layer(fused_net.MEAN_POOL, 2),
        Layer(fused_net.LINEAR, 3),
    ]
    if rng.random() < 0.4:
        layers[2] = Layer(fused_net.MAX_POOL, 2, stride=2, padding=1, size=3)
        del layers[3]
    weights = [floats(width, channels, 3, 3), floats(width, width, 3, 3), floats(5, width)]
    count = 3 if len(layers) == 4 else 2
    biases = [floats(len(weight)) for weight in weights[:count]]
    return [x, weights[:count], biases, [int(number) for layer in layers for number in layer]]


FITTING = {
    "crop_flip": crop_flip,
    "conv_bn_relu": conv_bn_relu,
    "conv3x3": conv3x3,
    "conv3x3_backward": conv3x3_backward,
    "bn_add_relu": bn_add_relu,
    "bn_add_relu_backward": bn_add_relu_backward,
    "bn_moments": bn_moments,
    "bn_apply": bn_apply,
    "bn_gradient_sums": bn_gradient_sums,
    "bn_input_gradient": bn_input_gradient,
    "fused_net": small_net,
}
PUBLIC = {name: getattr(ops, name) for name in ("crop_flip", "conv_bn_relu", "bn_add_relu", "fused_net")}
PUBLIC["conv3x3"] = lambda x, weight, stride, large: ops.conv3x3(x, weight, stride, "4x4" if large else None)


def spoilt_tensor(tensor, rng):
    """Another tensor in its place: of other size, strides, dtype, layout, device or values."""
    if tensor.numel() >= min(HUGE):  # already: its sum would take for ever
        return tensor
    last = tensor.dim() - 1
    axis = rng.randint(0, last) if last >= 0 else 0
    changes = [
        lambda: tensor.to(rng.choice(DTYPES)),
        lambda: tensor.unsqueeze(axis),
        lambda: tensor.select(axis, 0),
        lambda: tensor.flatten(),
        lambda: tensor.sum(),
        lambda: tensor.new_empty(0),
        lambda: tensor.narrow(axis, 0, rng.randint(0, tensor.shape[axis])),
        lambda: tensor.new_zeros([rng.randint(0, 9) for _ in range(rng.randint(0, 6))]),
        lambda: torch.cat([tensor] * rng.randint(2, 3), axis),
        lambda: torch.cat([tensor] * 2, axis)[(slice(None),) * axis + (slice(None, None, 2),)],
        lambda: tensor.transpose(axis, last),
        lambda: tensor.narrow(axis, 0, 1).expand([-1] * axis + [tensor.shape[axis]] + [-1] * (last - axis)),
        lambda: tensor.narrow(axis, 0, 1).expand([-1] * axis + [rng.choice(HUGE)] + [-1] * (last - axis)),
        lambda: tensor.new_zeros(1).expand([rng.choice(HUGE)] + [0] * last),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.ones(tensor.shape).to_mkldnn(),  # of some others, torch 2.14.1 corrupts the heap
        lambda: tensor.detach().clone().requires_grad_(),
        lambda: torch.full_like(tensor, rng.choice([-1, 2**62, 2**31]) if tensor.dtype == torch.int64 else 255),
        lambda: tensor * float("nan"),
        lambda: torch._neg_view(tensor),
        lambda: torch.randn(tensor.shape, dtype=torch.complex64).imag,
    ]
    return rng.choice(changes)()


def spoilt(value, rng):
    if isinstance(value, torch.Tensor):
        return spoilt_tensor(value, rng)
    if value == []:
        return value
    if isinstance(value, list):
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.8:
            return [*value[:at], spoilt(value[at], rng), *value[at + 1 :]]
        return value[:at] if kind < 0.9 else [*value, value[at]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([-1, 0, 1, 2, 3, 5, 2**15, 2**31, 2**62, -(2**63)])
    if isinstance(value, float):
        return rng.choice([-1.0, 0.0, 1e300, float("nan"), float("inf")])
    return rng.choice([None, torch.zeros(1), torch.zeros(2, 3, 4, 5)])


@needs_extension
def test_every_operator_has_its_calls():
    found = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("resnet_min::")}
    assert found == {f"resnet_min::{name}" for name in (*FITTING, "_multiply_adds")}


@needs_extension
@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
@torch.no_grad()
def test_hostile_calls(count):
    torch.manual_seed(count)
    rng, answered, refused = random.Random(count), collections.Counter(), collections.Counter()
    while answered.total() + refused.total() < count:
        name = rng.choice(list(FITTING))
        args = FITTING[name](rng)
        call = PUBLIC[name] if name in PUBLIC and rng.random() < 0.5 else getattr(torch.ops.resnet_min, name)
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            at = rng.randrange(len(args))
            try:
                args[at] = spoilt(args[at], rng)
            except (RuntimeError, IndexError, NotImplementedError):
                pass  # this tensor cannot be changed so
        try:
            call(*args)
            answered[name] += 1
        except (ValueError, IndexError, RuntimeError):
            refused[name] += 1
    print(f"{count} calls: {answered.total()} answered, {refused.total()} refused")
    for name in FITTING:
        assert min(answered[name], refused[name]) > count // 100, (name, answered, refused)

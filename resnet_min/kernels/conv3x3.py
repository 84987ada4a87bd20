"""The 3×3 convolution at stride 1: training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import backend
from .checks import FLOAT_NAMES, FLOATS, check_device, dtype_name
from .checks import check as check_argument


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """A 3×3 convolution at stride 1, padded by 1, without a bias: what most of a ResNet's training is.

    x        float32, bfloat16, float16 or float64 [B, C, H, W], any strides
    weight   [O, C, 3, 3] in x's dtype
    returns  [B, O, H, W] in x's dtype, channels_last

    Differentiable; the compiled kernel once. The CPU kernel, for float32 and multiples of 16 channels, is Winograd's
    F(2×2, 3×3) as in Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): 16 multiplications
    for 36. An Inf or NaN in x makes NaN of the up to 16 outputs around it, and values beyond 8e37, of which up to four
    are added, may overflow to such. Raises ValueError for a wrong dtype, shape
    or device.
    """
    if backend.supported("conv3x3", x, weight):
        return backend.call("conv3x3", check, x, weight)
    return reference(x, weight)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    """`conv3x3` in PyTorch, on any device."""
    check(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        out = torch.nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight, padding=1)
    return out.contiguous(memory_format=torch.channels_last)


def check(x: Tensor, weight: Tensor) -> None:
    """The checks of `conv3x3`."""
    op = "conv3x3"
    check_argument(op, "x", x, f"{FLOAT_NAMES} [B, C, H, W]", FLOATS, (None,) * 4)
    wanted = f"{dtype_name(x.dtype)} [O, {x.shape[1]}, 3, 3]"
    check_argument(op, "weight", weight, wanted, (x.dtype,), (None, x.shape[1], 3, 3))
    check_device(op, x, weight=weight)


# The kernel's inputs and outputs are multiples of it: csrc/conv3x3/op.h has the number, and when its form runs.
CHANNELS = getattr(backend._C, "winograd_channels", 1)


@backend.takes("conv3x3")
def takes(x: Tensor, weight: Tensor) -> bool:
    """On a CPU in float32, where csrc/conv3x3/op.h has kernels; bfloat16 has instructions of its own where it is fast.

    Maps of one row or column are left out: half of every tile would be outside.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == weight.dim() == 4
        and min(x.shape[2:]) > 1
        and all(channels > 0 and channels % CHANNELS == 0 for channels in weight.shape[:2])
    )


@backend.fake("conv3x3")
def _(x: Tensor, weight: Tensor) -> Tensor:
    check(x, weight)
    return x.new_empty((x.shape[0], *x.shape[2:], weight.shape[0])).permute(0, 3, 1, 2)


@backend.fake("conv3x3_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    return tuple(
        torch.empty_like(tensor, memory_format=torch.channels_last) if wanted else tensor.new_empty(0)
        for tensor, wanted in ((x, for_x), (weight, for_weight))
    )


# ---- in place of a module ----


def stands_for(conv: nn.Module, x: Tensor) -> bool:
    """Whether `conv3x3(x, conv.weight)` is what `conv(x)` would be in training, and compiled."""
    return (
        conv.training
        and type(x) is Tensor  # and no symbol of a tracer
        and type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not backend.has_hooks(conv)
        and not torch.is_autocast_enabled(x.device.type)
        and x.is_contiguous(memory_format=torch.channels_last)
        and backend.supported("conv3x3", x, conv.weight)
    )

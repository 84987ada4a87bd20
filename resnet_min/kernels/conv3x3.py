"""The 3×3 convolution: training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import backend
from .checks import FLOAT_NAMES, FLOATS, check_device, dtype_name
from .checks import check as check_argument

FORMS = (None, "4x4")  # of Winograd's, in float32


def conv3x3(x: Tensor, weight: Tensor, stride: int = 1, winograd: str | None = None) -> Tensor:
    """A 3×3 convolution, padded by 1, without a bias: what most of a ResNet's training is.

    x         float32, bfloat16, float16 or float64 [B, C, H, W], any strides
    weight    [O, C, 3, 3] in x's dtype
    stride    1 or 2
    winograd  "4x4" for F(4×4, 3×3) in float32, which is faster and less exact
    returns   [B, O, ceil(H / stride), ceil(W / stride)] in x's dtype, channels_last

    Differentiable; the compiled kernels once. They are for a CPU and multiples of 16 channels, add in float32, and
    round bfloat16 once:

    at stride 1  Winograd's forms, as in Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016):
                 F(2×2, 3×3), 16 multiplications for 36; by name, and in bfloat16, F(4×4, 3×3), 36 for 144, where that
                 is faster. Its error in float32 is held to 4 times eager PyTorch's by a test, F(2×2, 3×3)'s to 1.5
                 times. An Inf or NaN in x makes NaN of the nine outputs that take it, in F(4×4, 3×3) of up to 25, and
                 values beyond 8e37 or 1e37, of which several are added, may overflow to such.
    bfloat16     on a processor with AMX, Intel's matrix instructions, by these instead, at strides 1 and 2. What oneDNN
                 does as well is left to it.

    Raises ValueError for a wrong dtype, shape, stride, device or name.
    """
    check_form(winograd)
    if stride in strides(x.dtype) and backend.supported("conv3x3", x, weight):
        return backend.call("conv3x3", check, x, weight, stride, winograd == "4x4")
    return reference(x, weight, stride)


def check_form(winograd: str | None) -> None:
    if winograd not in FORMS:
        raise ValueError(f'conv3x3: winograd must be "4x4" or None; got {winograd!r}')


def set_winograd(winograd: str | None) -> None:
    """Choose the form of the convolutions of a network in training: `conv3x3`'s "4x4", or None for the exact one.

    Raises UserError for another name.
    """
    global _winograd
    if winograd not in FORMS:
        raise UserError(f'winograd is "4x4" or None; got {winograd!r}')
    _winograd = winograd


_winograd: str | None = None


def reference(x: Tensor, weight: Tensor, stride: int = 1, winograd: str | None = None) -> Tensor:
    """`conv3x3` in PyTorch, on any device, as exact by any name."""
    check(x, weight, stride)
    check_form(winograd)
    with torch.autocast(x.device.type, enabled=False):
        maps = x.contiguous(memory_format=torch.channels_last)
        out = torch.nn.functional.conv2d(maps, weight, stride=stride, padding=1)
    return out.contiguous(memory_format=torch.channels_last)


def check(x: Tensor, weight: Tensor, stride: int = 1, large_tiles: bool = False) -> None:
    """The checks of `conv3x3`; `large_tiles`: whether in the form "4x4"."""
    op = "conv3x3"
    check_argument(op, "x", x, f"{FLOAT_NAMES} [B, C, H, W]", FLOATS, (None,) * 4)
    wanted = f"{dtype_name(x.dtype)} [O, {x.shape[1]}, 3, 3]"
    check_argument(op, "weight", weight, wanted, (x.dtype,), (None, x.shape[1], 3, 3))
    if stride not in (1, 2):
        raise ValueError(f"{op}: stride must be 1 or 2; got {stride}")
    check_device(op, x, weight=weight)


# The kernels' inputs and outputs are multiples of it: csrc/conv3x3/op.h.
CHANNELS = getattr(backend._C, "conv_channels", 1)
HAS_AMX = getattr(backend._C, "has_amx", lambda: False)()


def strides(dtype: torch.dtype) -> tuple[int, ...]:
    """That there are kernels for."""
    return (1, 2) if _by_amx(dtype) else (1,)


def _by_amx(dtype: torch.dtype) -> bool:
    return HAS_AMX and dtype == torch.bfloat16


def _compiled(dtype: torch.dtype, x: Tensor, weight: Tensor, stride: int = 1) -> bool:
    """Whether there is a kernel, were x and weight of this dtype.

    None by Winograd for maps of one row or column: half of every tile would be outside.
    """
    return (
        x.device.type == "cpu"
        and x.dim() == weight.dim() == 4
        and dtype in (torch.float32, torch.bfloat16)
        and (_by_amx(dtype) or min(x.shape[2:]) > 1)
        and stride in strides(dtype)
        and all(channels > 0 and channels % CHANNELS == 0 for channels in weight.shape[:2])
    )


@backend.takes("conv3x3")
def takes(x: Tensor, weight: Tensor) -> bool:
    """On a CPU: csrc/conv3x3/op.h says what, beside the stride."""
    return x.dtype == weight.dtype and _compiled(x.dtype, x, weight)


@backend.fake("conv3x3")
def _(x: Tensor, weight: Tensor, stride: int, large_tiles: bool) -> Tensor:
    check(x, weight, stride)
    height, width = (-(-extent // stride) for extent in x.shape[2:])
    return x.new_empty((x.shape[0], height, width, weight.shape[0])).permute(0, 3, 1, 2)


@backend.fake("conv3x3_backward")
def _(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, large_tiles: bool, for_x: bool, for_weight: bool
) -> tuple[Tensor, Tensor]:
    return tuple(
        torch.empty_like(tensor, memory_format=torch.channels_last) if wanted else tensor.new_empty(0)
        for tensor, wanted in ((x, for_x), (weight, for_weight))
    )


# ---- in place of a module ----


def stands_for(conv: nn.Module, x: Tensor) -> bool:
    """Whether `in_place_of(conv, x)` is what `conv(x)` would be in training, and compiled, and faster."""
    return (
        conv.training
        and type(x) is Tensor  # and no symbol of a tracer
        and type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride in ((1, 1), (2, 2))
        and conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not backend.has_hooks(conv)
        and backend.in_use(x.device)
        and x.is_contiguous(memory_format=torch.channels_last)
        and _dtype(x) == _dtype(conv.weight)
        and _compiled(_dtype(x), x, conv.weight, conv.stride[0])
        and (not _by_amx(_dtype(x)) or -len(x) % 32 <= len(x) // 2)  # AMX takes blocks of 32 images
    )


def in_place_of(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What `conv(x)` is in training, autocast or not."""
    dtype = _dtype(x)
    return conv3x3(x.to(dtype), conv.weight.to(dtype), conv.stride[0], _winograd)


def _dtype(x: Tensor) -> torch.dtype:
    """That a convolution of x is worked out in. Autocast leaves float64 alone."""
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else x.dtype

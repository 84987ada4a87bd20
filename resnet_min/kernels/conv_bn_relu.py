"""A convolution with batch norm folded into it, an addition and a ReLU: inference."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import backend
from .checks import FLOAT_NAMES, FLOATS, check_device, dtype_name
from .checks import check as check_argument


def conv_bn_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    """A convolution with batch norm folded into it, plus a residual, and ReLU: a residual block's inference step.

    x         float32, bfloat16, float16 or float64 [B, C, H, W], any strides
    weight    [O, C, h, w] in x's dtype; in bfloat16 on a CPU also what `prepacked` made of that
    bias      [O] in x's dtype
    residual  [B, O, H', W'] in x's dtype, or None; H' = (H + 2 * padding - h) // stride + 1, W' likewise
    stride    1 to 2**15, in both directions
    padding   0 to 2**15 zeros on every side
    relu      whether ReLU comes last
    returns   [B, O, H', W'] in x's dtype, channels_last

    Raises ValueError for a wrong dtype, shape, device, stride or padding, and the kernels also for 2**31 elements or
    more in x or the output; RuntimeError for an input that requires grad while grad is on. The kernels round to the
    dtype once, at the end; on a CPU, float16, float64, and bfloat16 where x has one channel or one pixel, also before
    the residual is added. NaN and infinity stay what they are, with two exceptions on a CPU: in float32 the kernel is
    `fused_net`'s, with what is said there of weights, of Winograd's tiles and of huge values; in bfloat16 it may be
    oneDNN's, whose ReLU makes 0 of some NaN and leaves others.

    Equivalent to `relu(conv2d(x, weight, bias, stride, padding) + residual)`.
    """
    if backend.supported("conv_bn_relu", x, weight, bias, *([] if residual is None else [residual])):
        return backend.call("conv_bn_relu", check, x, weight, bias, residual, stride, padding, relu)
    return reference(x, weight, bias, residual, stride, padding, relu)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    """`conv_bn_relu` in PyTorch, on any device."""
    check(x, weight, bias, residual, stride, padding, relu)
    with torch.autocast(x.device.type, enabled=False):  # which would make x, but not residual, another dtype
        out = torch.nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, stride, padding)
    out = out if residual is None else out + residual
    return (out.relu() if relu else out).contiguous(memory_format=torch.channels_last)


def check(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> None:
    """The checks of `conv_bn_relu` that need metadata only."""
    op, dtype = "conv_bn_relu", dtype_name(x.dtype)
    check_argument(op, "x", x, f"{FLOAT_NAMES} [B, C, H, W]", FLOATS, (None,) * 4)
    check_argument(op, "weight", weight, f"{dtype} [O, {x.shape[1]}, h, w]", (x.dtype,), (None, x.shape[1], None, None))
    if weight.numel() == 0:
        raise ValueError(f"{op}: weight must have no empty dimension; got {list(weight.shape)}")
    check_argument(op, "bias", bias, f"{dtype} [{weight.shape[0]}]", (x.dtype,), (weight.shape[0],))
    if not 1 <= stride <= 2**15:
        raise ValueError(f"{op}: stride must be 1 to 2**15; got {stride}")
    if not 0 <= padding <= 2**15:
        raise ValueError(f"{op}: padding must be 0 to 2**15; got {padding}")
    if any(weight.shape[i] > x.shape[i] + 2 * padding for i in (2, 3)):
        shapes = f"weight {list(weight.shape)} and x {list(x.shape)}"
        raise ValueError(f"{op}: weight must fit into x and its padding of {padding}; got {shapes}")
    if residual is not None:
        shape = output_shape(x, weight, stride, padding)
        check_argument(op, "residual", residual, f"{dtype} {list(shape)}", (x.dtype,), shape)
    check_device(op, x, weight=weight, bias=bias, residual=residual)
    tensors = (x, weight, bias) if residual is None else (x, weight, bias, residual)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{op}: it is for inference, inputs must not require grad; use torch.no_grad()")


def output_shape(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, ...]:
    """[B, O, H', W'] of x [B, C, H, W] and weight [O, C, h, w]."""
    return (
        *x.shape[:1],
        *weight.shape[:1],
        *((x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3)),
    )


@backend.takes("conv_bn_relu")
def takes(x: Tensor, *_: Tensor) -> bool:
    """Earlier GPUs lack the tensor cores' instructions; their bfloat16 would be emulated besides."""
    on_tensor_cores = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
    return not on_tensor_cores or torch.cuda.get_device_properties(x.device).major >= 8


@backend.fake("conv_bn_relu")
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    check(x, weight, bias, residual, stride, padding, relu)
    b, o, h, w = output_shape(x, weight, stride, padding)
    return x.new_empty((b, h, w, o)).permute(0, 3, 1, 2)


# ---- the weight as oneDNN wants it ----


def prepacked(weight: Tensor, x: Tensor, stride: int, padding: int) -> Tensor:
    """`conv_bn_relu`'s weight in oneDNN's order: opaque, best for x's shape and right for any.

    Only where `takes_prepacked(x, weight)`. Without it, each call prepacks the weight.
    """
    reorder = torch.ops.mkldnn._reorder_convolution_weight
    return reorder(weight, (padding, padding), (stride, stride), (1, 1), 1, tuple(x.shape))


def takes_prepacked(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv_bn_relu` gains by computing these with a weight that `prepacked` made."""
    if weight.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    return backend.supported("conv_bn_relu", x, weight) and _onednn_has_bf16()


@functools.cache
def _onednn_has_bf16() -> bool:
    """Whether oneDNN convolves bfloat16 on this processor, and torch has the private operators that we call it by."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()

"""The pure-PyTorch twin of every operator: same name, same signature, same errors. Runs on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def crop_flip(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> Tensor:
    """Zero-pad images, crop them to their own size, flip, and look each value up in its channel's table.

    images   uint8 [N, H, W, 3]
    index    int64 [B], each in [0, N): repeats and any order are fine
    offset   int64 [B, 2] = (top, left), each in [0, 2 * padding]; equal to padding, nothing moves
    flip     bool  [B]: mirrored left to right, after the crop
    table    float32, bfloat16, float16 or float64 [3, 256]; a pixel outside the image is table[c, 0]
    returns  [B, 3, H, W] in table's dtype, channels_last

    Raises ValueError for a wrong dtype, shape, device or padding; IndexError for an index or offset out of range (on
    CUDA that is a device assertion: nothing waits for the device). Equivalent to, for each b,
    `table[c, hflip_if(flip[b], pad(images[index[b]], padding)[top:top + H, left:left + W])[y, x, c]]`.
    """
    check_crop_flip(images, index, offset, flip, table, padding)
    (n, height, width, _), batch, device = images.shape, index.shape[0], images.device
    # Indexing raises on a value past the end, but may take a negative one from the back: send those past the end too.
    index = torch.where(index < 0, n, index)
    offset = torch.arange(2 * padding + 1, device=device)[torch.where(offset < 0, 2 * padding + 1, offset)]
    padded = torch.nn.functional.pad(images.index_select(0, index), (0, 0, padding, padding, padding, padding))
    rows = offset[:, :1] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = offset[:, 1:] + torch.where(flip[:, None], width - 1 - columns, columns)
    # A flat index_select is the fastest gather that torch has on a CPU, with int32 more so.
    rows = (torch.arange(batch, device=device)[:, None] * padded.shape[1] + rows) * padded.shape[2]
    pixels = padded.view(-1, 3).index_select(0, (rows[:, :, None] + columns[:, None, :]).flatten())
    entries = pixels.int() + torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=device)
    out = table.flatten().index_select(0, entries.flatten())
    return out.view(batch, height, width, 3).permute(0, 3, 1, 2)


def check_crop_flip(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> None:
    """The checks of `crop_flip` that need metadata only, in the order and words of csrc/common.h."""
    _check("crop_flip", "images", images, "uint8 [N, H, W, 3]", (torch.uint8,), (None, None, None, 3))
    _check("crop_flip", "index", index, "int64 [B]", (torch.int64,), (None,))
    batch = index.shape[0]
    _check("crop_flip", "offset", offset, f"int64 [{batch}, 2]", (torch.int64,), (batch, 2))
    _check("crop_flip", "flip", flip, f"bool [{batch}]", (torch.bool,), (batch,))
    _check("crop_flip", "table", table, "float32, bfloat16, float16 or float64 [3, 256]", _FLOAT_DTYPES, (3, 256))
    if not 0 <= padding <= 2**24:
        raise ValueError(f"crop_flip: padding must be 0 to 2**24; got {padding}")
    for name, tensor in (("index", index), ("offset", offset), ("flip", flip), ("table", table)):
        _check_device("crop_flip", name, tensor, images)


def conv_bn_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    """A convolution with batch norm folded into it, plus a residual, and ReLU: a residual block's inference step.

    x         float32, bfloat16, float16 or float64 [B, C, H, W], any strides
    weight    [O, C, h, w] in x's dtype
    bias      [O] in x's dtype
    residual  [B, O, H', W'] in x's dtype, or None; H' = (H + 2 * padding - h) // stride + 1, W' likewise
    stride    1 to 2**15, in both directions
    padding   0 to 2**15 zeros on every side
    relu      whether ReLU comes last
    returns   [B, O, H', W'] in x's dtype, channels_last

    Raises ValueError for a wrong dtype, shape, device, stride or padding, and the kernels also for 2**31 elements or
    more in x or the output; RuntimeError for an input that requires grad while grad is on. The kernels round to the
    dtype once, at the end, and the CPU kernel's ReLU makes 0 of NaN. Equivalent to
    `relu(conv2d(x, weight, bias, stride, padding) + residual)`.
    """
    check_conv_bn_relu(x, weight, bias, residual, stride, padding)
    with torch.autocast(x.device.type, enabled=False):  # which would make x, but not residual, another dtype
        out = torch.nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, stride, padding)
    out = out if residual is None else out + residual
    return (out.relu() if relu else out).contiguous(memory_format=torch.channels_last)


def check_conv_bn_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int
) -> None:
    """The checks of `conv_bn_relu` that need metadata only, in the order and words of csrc/common.h."""
    op, dtype = "conv_bn_relu", str(x.dtype).removeprefix("torch.")
    _check(op, "x", x, "float32, bfloat16, float16 or float64 [B, C, H, W]", _FLOAT_DTYPES, (None,) * 4)
    _check(op, "weight", weight, f"{dtype} [O, {x.shape[1]}, h, w]", (x.dtype,), (None, x.shape[1], None, None))
    if weight.numel() == 0:
        raise ValueError(f"{op}: weight must have no empty dimension; got {list(weight.shape)}")
    _check(op, "bias", bias, f"{dtype} [{weight.shape[0]}]", (x.dtype,), (weight.shape[0],))
    if not 1 <= stride <= 2**15:
        raise ValueError(f"{op}: stride must be 1 to 2**15; got {stride}")
    if not 0 <= padding <= 2**15:
        raise ValueError(f"{op}: padding must be 0 to 2**15; got {padding}")
    if any(weight.shape[i] > x.shape[i] + 2 * padding for i in (2, 3)):
        shapes = f"weight {list(weight.shape)} and x {list(x.shape)}"
        raise ValueError(f"{op}: weight must fit into x and its padding of {padding}; got {shapes}")
    tensors = {"x": x, "weight": weight, "bias": bias}
    if residual is not None:
        shape = conv_output_shape(x, weight, stride, padding)
        _check(op, "residual", residual, f"{dtype} {list(shape)}", (x.dtype,), shape)
        tensors["residual"] = residual
    for name, tensor in tensors.items():
        if tensor.device != x.device:
            raise ValueError(f"{op}: {name} must be on {x.device}; got {tensor.device}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values()):
        raise RuntimeError(f"{op}: it is for inference, inputs must not require grad; use torch.no_grad()")


def conv_output_shape(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, ...]:
    """[B, O, H', W'] of x [B, C, H, W] and weight [O, C, h, w]."""
    return (
        *x.shape[:1],
        *weight.shape[:1],
        *((x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3)),
    )


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """A 3×3 convolution at stride 1, padded by 1, without a bias: what most of a ResNet's training is.

    x        float32, bfloat16, float16 or float64 [B, C, H, W], any strides
    weight   [O, C, 3, 3] in x's dtype
    returns  [B, O, H, W] in x's dtype, channels_last

    Differentiable, by the kernels once. The CPU kernel, for float32 and multiples of 64 channels, is Winograd's
    F(2×2, 3×3) as in Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): 16 multiplications
    for 36. An Inf or NaN in x makes NaN of the up to 16 outputs around it. Raises ValueError for a wrong dtype, shape
    or device.
    """
    check_conv3x3(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        out = torch.nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight, padding=1)
    return out.contiguous(memory_format=torch.channels_last)


def check_conv3x3(x: Tensor, weight: Tensor) -> None:
    """The checks of `conv3x3`."""
    op, dtype = "conv3x3", str(x.dtype).removeprefix("torch.")
    _check(op, "x", x, "float32, bfloat16, float16 or float64 [B, C, H, W]", _FLOAT_DTYPES, (None,) * 4)
    _check(op, "weight", weight, f"{dtype} [O, {x.shape[1]}, 3, 3]", (x.dtype,), (None, x.shape[1], 3, 3))
    if weight.device != x.device:
        raise ValueError(f"{op}: weight must be on {x.device}; got {weight.device}")


def bn_add_relu(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by the batch's mean and variance, scale and shift it, add `residual`, apply ReLU.

    x            float32, bfloat16, float16 or float64 [B, C, H, W], more than 1 value per channel (the kernels take
                 channels_last, and float16 on CUDA only)
    gamma, beta  [C], float32 (float64 where x is)
    residual     as x, or None
    eps          added to the variance, which is the biased one
    relu         whether to apply it; a NaN stays one
    returns      (out as x, mean [C], invstd [C]), the latter two in gamma's dtype and not differentiable

    Raises ValueError for a wrong dtype, shape, device or eps. The kernel differentiates once. Equivalent to
    `relu(F.batch_norm(x, None, None, gamma, beta, True, 0.0, eps) + residual)`; the kernel rounds only at the end.
    """
    check_bn_add_relu(x, gamma, beta, residual, eps)
    out, mean, invstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
    if residual is not None:
        out = out + residual
    return out.relu() if relu else out, mean.detach(), invstd.detach()


def bn_add_relu_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, out: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `bn_add_relu`, given its output's.

    grad        as x
    x … invstd  what `bn_add_relu` took and returned
    out         what it returned, where it had a residual and a ReLU; otherwise None, and ReLU's mask comes from x
    returns     (grad_x, grad_gamma, grad_beta, grad_residual); without `out` the last is [0], and the residual's
                gradient, if there is one, is `grad`

    Raises ValueError as `bn_add_relu` does. Equivalent to autograd through what that is equivalent to.
    """
    check_bn_add_relu_backward(grad, x, gamma, beta, mean, invstd, out, relu)
    values, dtype = x.numel() // x.shape[1], gamma.dtype
    gamma, beta, mean, invstd = (t[:, None, None] for t in (gamma, beta, mean, invstd))
    normal = (x - mean) * invstd
    masked = grad.to(dtype)
    if relu:
        masked = masked.masked_fill((normal * gamma + beta if out is None else out) <= 0, 0)
    grad_gamma, grad_beta = (masked * normal).sum((0, 2, 3)), masked.sum((0, 2, 3))
    mean_product, mean_grad = (t[:, None, None] / values for t in (grad_gamma, grad_beta))
    grad_x = (masked - mean_grad - normal * mean_product) * gamma * invstd
    return grad_x.to(x.dtype), grad_gamma, grad_beta, x.new_empty(0) if out is None else masked.to(x.dtype)


def check_bn_add_relu(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float) -> None:
    """The checks of `bn_add_relu`, in the order and words of csrc/bn_add_relu.h; any layout will do."""
    _check_x("bn_add_relu", x)
    _check_figures("bn_add_relu", x, gamma=gamma, beta=beta)
    if residual is not None:
        _check_like("bn_add_relu", x, residual=residual)
    if not 0 <= eps < math.inf:
        raise ValueError(f"bn_add_relu: eps must be finite and at least 0; got {eps:g}")


def check_bn_add_relu_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, out: Tensor | None, relu: bool
) -> None:
    """The checks of `bn_add_relu_backward`, in the order and words of csrc/bn_add_relu.h; any layout will do."""
    operator = "bn_add_relu_backward"
    _check_x(operator, x)
    _check_like(operator, x, grad=grad)
    _check_figures(operator, x, gamma=gamma, beta=beta, mean=mean, invstd=invstd)
    if out is not None:
        _check_like(operator, x, out=out)
        if not relu:
            raise ValueError(f"{operator}: out must be None without relu; got {_describe(out)}")


def _check_x(operator: str, x: Tensor) -> None:
    _check(operator, "x", x, "float32, bfloat16, float16 or float64 [B, C, H, W]", _FLOAT_DTYPES, (None,) * 4)
    if x.shape[0] * x.shape[2] * x.shape[3] < 2 or x.shape[1] == 0:
        raise ValueError(f"{operator}: x must have channels, and more than 1 value per channel; got {_describe(x)}")


def _check_figures(operator: str, x: Tensor, **figures: Tensor) -> None:
    """Raise ValueError unless there is one of each for every channel of x."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, got in figures.items():
        _check(operator, name, got, f"{_name(dtype)} [{x.shape[1]}]", (dtype,), (x.shape[1],))
        _check_device(operator, name, got, x)


def _check_like(operator: str, x: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless all are like x."""
    for name, got in tensors.items():
        _check(operator, name, got, _describe(x), (x.dtype,), tuple(x.shape))
        _check_device(operator, name, got, x)


def _check(
    operator: str, name: str, got: Tensor, wanted: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]
) -> None:
    """Raise ValueError unless `got` has one of `dtypes` and `shape`, where None is any size."""
    fits = got.dim() == len(shape) and all(w is None or w == g for g, w in zip(got.shape, shape, strict=True))
    if got.dtype not in dtypes or not fits:
        raise ValueError(f"{operator}: {name} must be {wanted}; got {_describe(got)}")


def _check_device(operator: str, name: str, got: Tensor, first: Tensor) -> None:
    if got.device != first.device:
        raise ValueError(f"{operator}: {name} must be on {first.device}; got {got.device}")


def _describe(tensor: Tensor) -> str:
    return f"{_name(tensor.dtype)} {list(tensor.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

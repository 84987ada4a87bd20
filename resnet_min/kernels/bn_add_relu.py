"""Batch normalisation with the batch's statistics, an addition and a ReLU: training."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from . import backend
from .checks import FLOAT_NAMES, FLOATS, check_device, describe, dtype_name
from .checks import check as check_argument


def bn_add_relu(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    momentum: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by the batch's mean and variance, scale and shift it, add `residual`, apply ReLU.

    x            float32, bfloat16, float16 or float64 [B, C, H, W], more than 1 value per channel (the kernels take
                 channels_last, and float16 on CUDA only)
    gamma, beta  [C], float32 (float64 where x is)
    residual     as x, or None
    eps          added to the variance, which is the biased one
    relu         whether to apply it; a NaN stays one
    running_mean, running_var, num_batches_tracked
                 a batch norm's buffers, [C] as gamma, [C] as gamma and int64 []: updated with this batch, in place; or
                 none of them
    momentum     the batch's share of the first two
    returns      (out as x, mean [C], invstd [C]), the latter two in gamma's dtype and not differentiable

    Raises ValueError for a wrong dtype, shape, device or eps. The kernel differentiates once. Equivalent to
    `relu(F.batch_norm(x, None, None, gamma, beta, True, 0.0, eps) + residual)`; the kernel rounds only at the end.
    """
    buffers = running_mean, running_var, num_batches_tracked
    if backend.supported("bn_add_relu", x, gamma, beta, residual, *buffers):
        return backend.call("bn_add_relu", check, x, gamma, beta, residual, eps, relu, *buffers, momentum)
    return reference(x, gamma, beta, residual, eps, relu, *buffers, momentum)


def reference(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    momentum: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """`bn_add_relu` in PyTorch, on any device."""
    check(x, gamma, beta, residual, eps, relu, running_mean, running_var, num_batches_tracked, momentum)
    out, mean, invstd = torch.native_batch_norm(x, gamma, beta, running_mean, running_var, True, momentum, eps)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    if residual is not None:
        out = out + residual
    return out.relu() if relu else out, mean.detach(), invstd.detach()


def reference_backward(
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
    check_backward(grad, x, gamma, beta, mean, invstd, out, relu)
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


# ---- checks: any layout will do ----


def check(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    momentum: float = 0.1,
) -> None:
    """The checks of `bn_add_relu`."""
    _check_x("bn_add_relu", x)
    _check_figures("bn_add_relu", x, gamma=gamma, beta=beta)
    if residual is not None:
        _check_like("bn_add_relu", x, residual=residual)
    if not 0 <= eps < math.inf:
        raise ValueError(f"bn_add_relu: eps must be finite and at least 0; got {eps:g}")
    buffers = running_mean, running_var, num_batches_tracked
    if any(buffer is not None for buffer in buffers):
        if any(buffer is None for buffer in buffers):
            raise ValueError("bn_add_relu: running_mean, running_var and num_batches_tracked go together; got not all")
        _check_figures("bn_add_relu", x, running_mean=running_mean, running_var=running_var)
        check_argument("bn_add_relu", "num_batches_tracked", num_batches_tracked, "int64 []", (torch.int64,), ())
        check_device("bn_add_relu", x, num_batches_tracked=num_batches_tracked)


def check_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, out: Tensor | None, relu: bool
) -> None:
    """The checks of `reference_backward`."""
    operator = "bn_add_relu_backward"
    _check_x(operator, x)
    _check_like(operator, x, grad=grad)
    _check_figures(operator, x, gamma=gamma, beta=beta, mean=mean, invstd=invstd)
    if out is not None:
        _check_like(operator, x, out=out)
        if not relu:
            raise ValueError(f"{operator}: out must be None without relu; got {describe(out)}")


def _check_x(operator: str, x: Tensor) -> None:
    check_argument(operator, "x", x, f"{FLOAT_NAMES} [B, C, H, W]", FLOATS, (None,) * 4)
    if x.shape[0] * x.shape[2] * x.shape[3] < 2 or x.shape[1] == 0:
        raise ValueError(f"{operator}: x must have channels, and more than 1 value per channel; got {describe(x)}")


def _check_figures(operator: str, x: Tensor, **figures: Tensor) -> None:
    """Raise ValueError unless there is one of each for every channel of x."""
    dtype = figures_dtype(x)
    for name, got in figures.items():
        wanted = f"{dtype_name(dtype)} [{x.shape[1]}]"
        check_argument(operator, name, got, wanted, (dtype,), (x.shape[1],))
        check_device(operator, x, **{name: got})


def _check_like(operator: str, x: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless all are like x."""
    for name, got in tensors.items():
        check_argument(operator, name, got, describe(x), (x.dtype,), tuple(x.shape))
        check_device(operator, x, **{name: got})


# ---- the compiled operator ----


@backend.takes("bn_add_relu")
def takes(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, *buffers: Tensor | None) -> bool:
    """channels_last only, and buffers without gaps."""
    return (
        _takes_dtypes(x, gamma, beta, residual)
        and x.is_contiguous(memory_format=torch.channels_last)
        and all(buffer is None or buffer.is_contiguous() for buffer in buffers)
    )


def _takes_dtypes(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None) -> bool:
    return (
        x.dim() == 4
        and (x.dtype in (torch.float32, torch.bfloat16, torch.float64) or (x.dtype == torch.float16 and x.is_cuda))
        and gamma.dtype == beta.dtype == figures_dtype(x)
        and (residual is None or residual.dtype == x.dtype)
    )


def figures_dtype(x: Tensor) -> torch.dtype:
    """What a channel's figures are in, beside x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@backend.fake("bn_add_relu")
def _(x: Tensor, gamma: Tensor, *others: Any) -> tuple[Tensor, ...]:
    check(x, gamma, *others)
    return torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma)


@backend.fake("bn_add_relu_backward")
def _(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, out: Tensor | None, relu: bool
) -> tuple[Tensor, ...]:
    check_backward(grad, x, gamma, beta, mean, invstd, out, relu)
    grad_residual = x.new_empty(0) if out is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma), grad_residual


# ---- in place of modules ----


def stands_for(bn: nn.Module, relu: nn.Module | None, x: Tensor, residual: Tensor | None) -> bool:
    """Whether `in_place_of` gives what the modules would in training, and compiled.

    None of them is frozen, of another class, or has hooks. Warns, once, where only x's layout is in the way.
    """
    if not (
        bn.training
        and type(x) is Tensor  # and no symbol of a tracer
        and type(bn) is nn.BatchNorm2d
        and type(relu) in (nn.ReLU, type(None))
        and bn.affine
        and bn.track_running_stats
        and not backend.has_hooks(bn, relu)
    ):
        return False
    if backend.supported(
        "bn_add_relu", x, bn.weight, bn.bias, residual, bn.running_mean, bn.running_var, bn.num_batches_tracked
    ):
        return True
    if (
        not torch.compiler.is_compiling()
        and backend.in_use(x.device)
        and _takes_dtypes(x, bn.weight, bn.bias, residual)
        and not x.is_contiguous(memory_format=torch.channels_last)
    ):
        _warn_of_layout()
    return False


@functools.cache
def _warn_of_layout() -> None:
    warnings.warn(
        "the compiled kernels train on channels_last tensors only, so PyTorch's own layers run instead; use "
        "net.to(memory_format=torch.channels_last) and images.contiguous(memory_format=torch.channels_last)",
        stacklevel=2,
    )


def in_place_of(bn: nn.BatchNorm2d, relu: nn.ReLU | None, x: Tensor, residual: Tensor | None) -> Tensor:
    """`relu(bn(x) + residual)` where `stands_for` said so, with the running statistics updated as `bn` does."""
    call = x, bn.weight, bn.bias, residual, bn.eps, relu is not None
    if bn.momentum is not None:
        return bn_add_relu(*call, bn.running_mean, bn.running_var, bn.num_batches_tracked, bn.momentum)[0]
    out, mean, invstd = bn_add_relu(*call)
    track(bn, mean, invstd, x.numel() // x.shape[1])
    return out


def track(bn: nn.BatchNorm2d, mean: Tensor, invstd: Tensor, values: int | Tensor) -> None:
    """Update the running statistics of `bn` as it does, with those of a batch [C] of so many values a channel."""
    bn.num_batches_tracked.add_(1)
    weight = 1 / bn.num_batches_tracked if bn.momentum is None else bn.momentum
    variance = invstd.pow(-2).sub_(bn.eps).clamp_(min=0).mul_(values / (values - 1))
    bn.running_mean.lerp_(mean, weight)
    bn.running_var.lerp_(variance, weight)

"""cuDNN's fused call for a convolution with bias, residual and ReLU, and the clock of a trial between it and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops


def fuses(x: Tensor, relu: bool) -> bool:
    """Whether `conv_bn_relu` takes such an x: there is always a ReLU in it."""
    sound = x.dim() == 4 and len(x) > 0 and not (x.requires_grad and torch.is_grad_enabled())
    return x.is_cuda and relu and sound and x.dtype != torch.float64 and ops.supported("conv_bn_relu", x)


def conv_bn_relu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, padding: int, relu: bool
) -> Tensor:
    """`ops.conv_bn_relu` by cuDNN's own fused call."""
    x = x.contiguous(memory_format=torch.channels_last)
    how = bias, (stride, stride), (padding, padding), (1, 1), 1
    with torch.autocast(x.device.type, enabled=False):
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, *how)
        residual = residual.contiguous(memory_format=torch.channels_last)
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, *how)


def fixed_choice() -> bool:
    """Whether the user wants no choice that a measurement makes."""
    return torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic


def milliseconds(call: Callable[..., Tensor], args: tuple[Any, ...], calls: int = 10) -> float:
    """What a call takes on the GPU, the least of three times `calls` in a row, after as many that are not timed."""
    with torch.cuda.device(args[0].device):  # whose events these are
        return _milliseconds(call, args, calls)


def _milliseconds(call: Callable[..., Tensor], args: tuple[Any, ...], calls: int) -> float:
    times = []
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call(*args)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times[1:]) / calls

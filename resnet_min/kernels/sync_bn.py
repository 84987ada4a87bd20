"""Batch normalisation by the statistics of a batch that several processes share, an addition and a ReLU: training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .bn_add_relu import track

Gather = Callable[[Tensor], Tensor]  # […] of each process -> [processes, …], in rank order


class SyncBatchNorm(nn.BatchNorm2d):
    """An nn.BatchNorm2d, with its parameters and statistics, that normalises by the shards of all processes.

    Every process has a shard [b, C, H, W] of the batch, which may be empty, and calls it as often as the others do.
    In eval mode it is an nn.BatchNorm2d. torch's SyncBatchNorm takes CUDA tensors only.
    """

    def __init__(self, bn: nn.BatchNorm2d, gather: Gather) -> None:
        super().__init__(bn.num_features, bn.eps, bn.momentum, device="meta")
        self.weight, self.bias = bn.weight, bn.bias
        self.running_mean, self.running_var = bn.running_mean, bn.running_var
        self.num_batches_tracked = bn.num_batches_tracked
        self.gather = gather
        self.train(bn.training)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """`relu(bn(x) + residual)`. Raises ValueError for a batch of one value a channel, in all processes."""
        if not self.training:
            out = super().forward(x)
            out = out if residual is None else out + residual
            return out.relu() if relu else out
        out, count, mean, invstd = _Synchronised.apply(x, self.weight, self.bias, residual, self.eps, relu, self.gather)
        track(self, mean, invstd, count)
        return out


class _Synchronised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        residual: Tensor | None,
        eps: float,
        relu: bool,
        gather: Gather,
    ) -> tuple[Tensor, ...]:
        count, mean, distances = merged(gather(moments(x, gamma)))
        if count[0] < 2:
            raise ValueError(f"batch norm needs more than 1 value per channel in a batch; got {int(count[0])}")
        mean, invstd = mean.to(gamma.dtype), (distances / count + eps).rsqrt().to(gamma.dtype)
        scale = gamma * invstd
        out = torch.addcmul(_spread(beta - mean * scale), x, _spread(scale)).to(x.dtype)
        if residual is not None:
            out += residual
        if relu:
            out.relu_()
        ctx.save_for_backward(x, gamma, mean, invstd, count, out if relu else None)
        ctx.residual, ctx.gather = residual is not None, gather
        ctx.mark_non_differentiable(count, mean, invstd)
        return out, count, mean, invstd

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, invstd, count, out = ctx.saved_tensors
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        sums = gradient_sums(grad, x, gamma, mean, invstd)
        mean_grad, mean_product = ctx.gather(sums).sum(0) / count
        # (grad - mean_grad - (x - mean) * invstd * mean_product) * gamma * invstd
        scale = gamma * invstd
        of_x = -scale * invstd * mean_product
        grad_x = torch.addcmul(
            _spread((-scale * mean_grad - of_x * mean).to(gamma.dtype)), x, _spread(of_x.to(gamma.dtype))
        )
        grad_x = grad_x.addcmul_(grad, _spread(scale)).to(x.dtype)
        grad_beta, grad_gamma = sums.to(gamma.dtype)  # of the shard: DDP adds the others'
        return grad_x, grad_gamma, grad_beta, grad if ctx.residual else None, None, None, None


def moments(x: Tensor, gamma: Tensor) -> Tensor:
    """[b, C, H, W] -> float64 [3, C]: a channel's number of values, their mean, their squared distances from it.

    By torch's batch norm, which is faster than what computes these alone; gamma says in which dtype.
    """
    count = x.numel() // x.shape[1]
    if count == 0:
        return torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
    _, mean, invstd = torch.native_batch_norm(x, gamma, gamma, None, None, True, 0.0, 0.0)
    mean, distances = mean.double(), invstd.double() ** -2 * count
    return torch.stack((torch.full_like(mean, count), mean, distances))


def merged(parts: Tensor) -> Tensor:
    """`moments` of several shards [shards, 3, C] -> of all of them [3, C], as Chan, Golub & LeVeque (1979) do.

    Every term is positive, so nothing cancels.
    """
    counts, means, distances = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return torch.stack((count, mean, (distances + counts * (means - mean) ** 2).sum(0)))


def gradient_sums(grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    """float64 [2, C]: a channel's sum of grad, and of grad times the normalised x."""
    if x.numel() == 0:
        return torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        grad, x, gamma, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return torch.stack((sums, products)).double()


def _spread(figures: Tensor) -> Tensor:
    """[C] -> [C, 1, 1], beside [b, C, H, W]."""
    return figures[:, None, None]

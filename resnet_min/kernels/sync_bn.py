"""Batch normalisation by the statistics of a batch that several processes share, an addition and a ReLU: training.

`bn_add_relu` in its four passes, between which the processes merge what each has of its shard [b, C, H, W]:

    bn_moments(x)                                            float64 [3, C]: number of values, their mean, and the sum
                                                             of their squared distances from it
    bn_apply(x, gamma, beta, mean, invstd, residual, relu)   out, as x
    bn_gradient_sums(grad, x, gamma, beta, mean, invstd, out, relu)
                                                             (float64 [2, C]: the sum of grad after ReLU's mask, and of
                                                             its products with the normalised x; grad after the mask
                                                             where there is an out, else [0])
    bn_input_gradient(grad, x, gamma, beta, mean, invstd, means, relu)
                                                             grad_x; means: those sums of the batch, by its number of
                                                             values; relu: grad is to be masked by x

The arguments are those of `bn_add_relu` and its backward, except that a shard may be empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import backend
from .bn_add_relu import figures_dtype, track

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
        compiled = x.device.type == "cpu" and backend.supported("bn_add_relu", x, gamma, beta, residual)
        passes = torch.ops.resnet_min if compiled else Reference
        count, mean, distances = merged(gather(passes.bn_moments(x)))
        if count[0] < 2:
            raise ValueError(f"batch norm needs more than 1 value per channel in a batch; got {int(count[0])}")
        mean, invstd = mean.to(gamma.dtype), (distances / count + eps).rsqrt().to(gamma.dtype)
        out = passes.bn_apply(x, gamma, beta, mean, invstd, residual, relu)
        needs_out = relu and residual is not None  # otherwise x tells ReLU's mask
        ctx.save_for_backward(x, gamma, beta, mean, invstd, count, out if needs_out else None)
        ctx.passes, ctx.residual, ctx.relu, ctx.gather = passes, residual is not None, relu, gather
        ctx.mark_non_differentiable(count, mean, invstd)
        return out, count, mean, invstd

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *saved, count, out = ctx.saved_tensors
        x, gamma, beta, mean, invstd = saved
        sums, masked = ctx.passes.bn_gradient_sums(grad, *saved, out, ctx.relu)
        if out is not None:
            grad = masked
        means = ctx.gather(sums).sum(0) / count
        grad_x = ctx.passes.bn_input_gradient(grad, *saved, means, ctx.relu and out is None)
        grad_beta, grad_gamma = sums.to(gamma.dtype)  # of the shard: DDP adds the others'
        return grad_x, grad_gamma, grad_beta, grad if ctx.residual else None, None, None, None


def merged(parts: Tensor) -> Tensor:
    """`moments` of several shards [shards, 3, C] -> of all of them [3, C], as Chan, Golub & LeVeque (1979) do.

    Every term is positive, so nothing cancels.
    """
    counts, means, distances = parts.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return torch.stack((count, mean, (distances + counts * (means - mean) ** 2).sum(0)))


class Reference:
    """The passes in PyTorch, on any device and in any layout: by its batch norm where that has the sums to give."""

    @staticmethod
    def bn_moments(x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1]
        if count == 0:
            return torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
        ones = torch.ones(x.shape[1], dtype=figures_dtype(x), device=x.device)
        _, mean, invstd = torch.native_batch_norm(x, ones, ones, None, None, True, 0.0, 0.0)
        mean, distances = mean.double(), invstd.double() ** -2 * count
        distances[invstd == 0] = 0  # torch's for a variance of zero
        return torch.stack((torch.full_like(mean, count), mean, distances))

    @staticmethod
    def bn_apply(
        x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, residual: Tensor | None, relu: bool
    ) -> Tensor:
        scale = gamma * invstd
        out = torch.addcmul(_spread(beta - mean * scale), x, _spread(scale)).to(x.dtype)
        if residual is not None:
            out += residual
        return out.relu_() if relu else out

    @staticmethod
    def bn_gradient_sums(
        grad: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        invstd: Tensor,
        out: Tensor | None,
        relu: bool,
    ) -> tuple[Tensor, Tensor]:
        masked = _masked(grad, x, gamma, beta, mean, invstd, out) if relu else grad
        if x.numel() == 0:
            sums = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
        else:
            _, products, of_grad = torch.ops.aten.native_batch_norm_backward(
                masked, x, gamma, None, None, mean, invstd, True, 0.0, [False, True, True]
            )
            sums = torch.stack((of_grad, products)).double()
        return sums, x.new_empty(0) if out is None else masked

    @staticmethod
    def bn_input_gradient(
        grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, means: Tensor, relu: bool
    ) -> Tensor:
        if relu:
            grad = _masked(grad, x, gamma, beta, mean, invstd)
        mean_grad, mean_product = means
        # (grad - mean_grad - (x - mean) * invstd * mean_product) * gamma * invstd
        scale = gamma * invstd
        of_x = -scale * invstd * mean_product
        constant = (-scale * mean_grad - of_x * mean).to(gamma.dtype)
        grad_x = torch.addcmul(_spread(constant), x, _spread(of_x.to(gamma.dtype)))
        return grad_x.addcmul_(grad, _spread(scale)).to(x.dtype)


def _masked(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor, out: Tensor | None = None
) -> Tensor:
    if out is None:
        out = Reference.bn_apply(x, gamma, beta, mean, invstd, None, True)
    return torch.ops.aten.threshold_backward(grad, out, 0)


def _spread(figures: Tensor) -> Tensor:
    """[C] -> [C, 1, 1], beside [b, C, H, W]."""
    return figures[:, None, None]


# ---- the compiled passes ----


@backend.fake("bn_moments")
def _(x: Tensor) -> Tensor:
    return x.new_empty(3, x.shape[1], dtype=torch.float64)


@backend.fake("bn_apply")
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@backend.fake("bn_gradient_sums")
def _(grad: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, out, relu = others
    return x.new_empty(2, x.shape[1], dtype=torch.float64), x.new_empty(0) if out is None else torch.empty_like(x)


@backend.fake("bn_input_gradient")
def _(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)

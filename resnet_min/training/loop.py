"""One epoch of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from .cuda_graph import Recorder
from .hardware import Hardware
from .optimizer import set_rate


class Diverged(UserError):
    """The loss is not a number any more."""


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    where: Hardware,
    loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    after_step: Callable[[], object] = lambda: None,
    recorder: Recorder | None = None,
) -> tuple[Tensor, float]:
    """Train on each of `batches` (images [B,3,H,W], targets) once, step i at learning rate `rates[i]`.

    model: of several processes what `where.world.parallel` made of it, and then `batches` are this process' shards.
    loss_of: (outputs in float32, targets) -> (loss, a figure of each image [B]).
    recorder: takes the steps as a CUDA graph; one for all epochs.

    Returns (loss of every step, of the whole batch, float64 [steps] on the CPU; mean figure of the outputs that the
    steps were taken from).
    Raises Diverged, naming the step of this epoch and its rate, at a loss that is NaN or infinite: on a CPU before that
    step is taken, on a GPU within 50 steps (it is asked rarely, so as not to wait for it).
    """

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with where.autocast():
            outputs = model(images)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        loss, of_batch, figure, count = where.world.reduce(*loss_of(outputs, targets))
        if where.device.type != "cpu" or math.isfinite(of_batch.item()):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return of_batch, figure, count

    model.train()
    losses = torch.zeros(len(rates), dtype=torch.float64, device=where.device)
    figures, seen, checked = torch.zeros((), dtype=torch.float64, device=where.device), 0, 0
    for number, ((images, targets), rate) in enumerate(zip(batches, rates, strict=True), start=1):
        set_rate(optimizer, rate)
        if recorder is None:
            loss, figure, count = step(images, targets)
        else:
            loss, figure, count = recorder.take(step, images, targets, optimizer)
        losses[number - 1] = loss
        figures += figure
        seen = seen + count
        if where.device.type == "cpu" or number % 50 == 0 or number == len(rates):
            for at, value in enumerate(losses[checked:number].tolist(), start=checked):
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {at + 1} of {len(rates)}, learning rate {rates[at]:g}")
            checked = number
        after_step()
    return losses.cpu(), (figures / seen).item()

"""One epoch of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .cuda_graph import Recorder
from .hardware import Hardware
from .optimizer import set_rate


class Diverged(UserError):
    """The loss is not a number any more."""


@dataclass
class Progress:
    """What the steps of an epoch gave so far: with weights, optimizer and generators, all that it goes on from."""

    losses: Tensor  # float64 [steps], of each step; 0 for those to come
    figures: Tensor  # float64 [], the sum of all images' figures
    taken: int = 0  # steps
    seen: Tensor | int = 0  # images
    seconds: float = 0.0

    @classmethod
    def at(cls, saved: dict[str, Any] | None, steps: int, device: torch.device) -> Progress:
        """Where a checkpoint's "progress" was, or at the beginning of an epoch of `steps` steps.

        Raises UserError where it took more steps than these.
        """
        losses, figures = (torch.zeros(size, dtype=torch.float64, device=device) for size in ((steps,), ()))
        self = cls(losses, figures)
        if saved is not None:
            if len(saved["losses"]) > steps:
                raise UserError(f"the checkpoint took {len(saved['losses'])} steps of an epoch that has {steps} here")
            self.taken, self.seen, self.seconds = len(saved["losses"]), saved["seen"], saved["seconds"]
            self.losses[: self.taken] = saved["losses"]
            self.figures += saved["figures"]
        return self

    def saved(self) -> dict[str, Any]:
        """For a checkpoint. Raises Diverged where a loss is NaN or infinite: such weights are not kept."""
        losses = self.losses[: self.taken].cpu()
        if not losses.isfinite().all():
            raise Diverged("the loss is NaN or infinite within its last 50 steps")
        return {"losses": losses, "figures": self.figures.item(), "seen": int(self.seen), "seconds": self.seconds}


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    where: Hardware,
    loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    after_step: Callable[[], object] = lambda: None,
    recorder: Recorder | None = None,
    progress: Progress | None = None,
    frozen_stats: bool = False,
) -> tuple[Tensor, float]:
    """Train on each of `batches` (images [B,3,H,W], targets) once, step i at learning rate `rates[i]`.

    model: of several processes what `where.world.parallel` made of it, and then `batches` are this process' shards.
    loss_of: (outputs in float32, targets) -> (loss, a figure of each image [B]).
    after_step: called between two steps, and after the last.
    recorder: takes the steps as a CUDA graph; one for all epochs.
    progress: the steps that were taken before, whose batches are passed over; every step is added to it.
    frozen_stats: batch norms normalise by their running statistics, as in evaluation, and leave them as they are.

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
    for module in model.modules() if frozen_stats else ():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            module.eval()
    progress = progress or Progress.at(None, len(rates), where.device)
    losses, checked = progress.losses, progress.taken
    began = perf_counter()
    steps = islice(zip(batches, rates, strict=True), progress.taken, None)
    for number, ((images, targets), rate) in enumerate(steps, start=progress.taken + 1):
        set_rate(optimizer, rate)
        if recorder is None:
            loss, figure, count = step(images, targets)
        else:
            loss, figure, count = recorder.take(step, images, targets, optimizer)
        losses[number - 1] = loss
        progress.figures += figure
        progress.seen = progress.seen + count
        progress.taken = number
        if where.device.type == "cpu" or number % 50 == 0 or number == len(rates):
            for at, value in enumerate(losses[checked:number].tolist(), start=checked):
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {at + 1} of {len(rates)}, learning rate {rates[at]:g}")
            checked = number
        progress.seconds += perf_counter() - began
        after_step()
        began = perf_counter()
    return losses.cpu(), (progress.figures / progress.seen).item()

"""A training step as one CUDA graph: at small batches a GPU does its work faster than a host can ask for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]

WARM_UP = 3  # steps before the recording, in which libraries choose their algorithms and the optimizer makes its state


class Recorder:
    """Takes steps: the first few one operation after the other, then by replaying a recording of one.

    A step (images [B,3,H,W], targets) -> (loss, figure, …) must do the same operations every time, and `optimizer` must
    be the one it ends with: its learning rates become tensors, so that a replay finds the present ones. Batches of
    another size than the first one's (an epoch's last) are never recorded. A new optimizer starts anew.
    """

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None

    def take(self, step: Step, images: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer) -> tuple[Tensor, ...]:
        """One step, however it is taken. The results are the caller's to keep."""
        if optimizer is not self.optimizer:
            self.optimizer, self.replay, self.taken = optimizer, None, 0
            self.arguments = images.clone(), targets.clone()
            for group in optimizer.param_groups:
                group["lr"] = torch.as_tensor(group["lr"], device=images.device)
        if images.shape != self.arguments[0].shape:
            return step(images, targets)
        if self.taken < WARM_UP:
            self.taken += 1
            with warnings.catch_warnings():  # a capturable optimizer warns of steps that are not captured
                warnings.filterwarnings("ignore", ".*capturable=True")
                return on_a_side_stream(step, images, targets)
        if self.replay is None:
            self.replay = record(step, self.arguments)
        for to, given in zip(self.arguments, (images, targets), strict=True):
            to.copy_(given)
        return tuple(result.clone() for result in self.replay())


def on_a_side_stream(step: Step, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """A step as a recording wants those before it: not on the default stream."""
    stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        results = step(images, targets)
    main.wait_stream(stream)
    return results


def record(step: Step, arguments: tuple[Tensor, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """What takes `step` on what is in `arguments` when it is called, and returns the same tensors every time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*arguments)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay

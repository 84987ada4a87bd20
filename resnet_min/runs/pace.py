"""When a run is saved within an epoch: every so many minutes, and when SIGTERM is to end it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

import torch

from ..errors import Terminated
from ..training.distributed import World

T = TypeVar("T")


class Pace:
    """Asked where a run can be saved: saves it if it is time; where SIGTERM has come, saves and raises Terminated.

    minutes: from one save to the next; None: only for SIGTERM. It is a context, within which SIGTERM waits to be asked
    for.
    """

    def __init__(self, minutes: float | None, world: World) -> None:
        self.minutes, self.world, self.last, self.terminated = minutes, world, monotonic(), False

    def __enter__(self) -> Pace:
        self.before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():  # no other may
            signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)

    def _terminate(self, *_: object) -> None:
        self.terminated = True

    def ask(self, save: Callable[[], object]) -> None:
        """To be called between two steps: in every process of a world, which do it together."""
        late = self.minutes is not None and monotonic() - self.last >= 60 * self.minutes
        terminated, late = self.world.gather(torch.tensor([self.terminated, late])).any(0).tolist()
        if terminated or late:
            save()
            self.saved()
        if terminated:
            raise Terminated

    def saved(self) -> None:
        """To be called where the run was saved without being asked for."""
        self.last = monotonic()

    def asked(self, batches: Iterable[T], save: Callable[[], object]) -> Iterator[T]:
        """`batches` of an evaluation, which leaves the run as it is, with a question before each.

        Processes that share an evaluation out have other numbers of batches, and do not ask within it.
        """
        for batch in batches:
            if self.world.size == 1:
                self.ask(save)
            yield batch

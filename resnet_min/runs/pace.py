"""When a run is saved within an epoch: every so many minutes, and when SIGTERM is to end it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

from ..errors import Terminated

T = TypeVar("T")


class Pace:
    """Asked where a run can be saved: saves it if it is time; where SIGTERM has come, saves and raises Terminated.

    minutes: from one save to the next; None: only for SIGTERM. It is a context, within which SIGTERM waits to be asked
    for.

    any_of: whether a flag is set in any of the processes that train together, which all ask between the same steps.
    """

    def __init__(self, minutes: float | None, any_of: Callable[[bool], bool] = bool) -> None:
        self.minutes, self.last, self.terminated, self.any_of = minutes, monotonic(), False, any_of

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

    def ask(self, save: Callable[[], object], alone: bool = False) -> None:
        """To be called between two steps; `alone`: where the other processes do not ask."""
        terminated = self.terminated if alone else self.any_of(self.terminated)
        if terminated or (self.minutes is not None and monotonic() - self.last >= 60 * self.minutes):
            save()
            self.saved()
        if terminated:
            raise Terminated

    def saved(self) -> None:
        """To be called where the run was saved without being asked for."""
        self.last = monotonic()

    def asked(self, batches: Iterable[T], save: Callable[[], object]) -> Iterator[T]:
        """`batches` of an evaluation, which leaves the run as it is, with a question before each."""
        for batch in batches:
            self.ask(save, alone=True)  # processes do not have as many batches as each other
            yield batch

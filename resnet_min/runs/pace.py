"""When a run is saved within an epoch: every so many minutes, and when Ctrl-C or SIGTERM is to end it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from ..errors import Terminated

T = TypeVar("T")


class Pace:
    """Asked where a run can be saved: saves it if it is time; where a signal has come, saves and raises for it.

    minutes: from one save to the next; None: only for a signal. It is a context, within which SIGINT, as of Ctrl-C, and
    SIGTERM wait to be asked for, and raise KeyboardInterrupt and Terminated; a second Ctrl-C raises at once.

    any_of: whether a flag is set in any of the processes that train together, which all ask between the same steps.
    """

    def __init__(self, minutes: float | None, any_of: Callable[[bool], bool] = bool) -> None:
        self.minutes, self.last, self.any_of = minutes, monotonic(), any_of
        self.ending: type[KeyboardInterrupt] | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Pace:
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self.before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: object) -> None:
        if self.ending is None:
            self.ending, self.since = KeyboardInterrupt if number == signal.SIGINT else Terminated, monotonic()
        elif number == signal.SIGINT and monotonic() - self.since > 0.3:  # `timeout -s INT` sends the first one twice
            raise KeyboardInterrupt

    def ask(self, save: Callable[[], object], alone: bool = False) -> None:
        """To be called between two steps; `alone`: where the other processes do not ask."""
        signalled = self.ending is not None
        ending = signalled if alone else self.any_of(signalled)
        if ending or (self.minutes is not None and monotonic() - self.last >= 60 * self.minutes):
            save()
            self.saved()
        if ending:
            raise self.ending or Terminated

    def saved(self) -> None:
        """To be called where the run was saved without being asked for."""
        self.last = monotonic()

    def asked(self, batches: Iterable[T], save: Callable[[], object]) -> Iterator[T]:
        """`batches` of an evaluation, which leaves the run as it is, with a question before each."""
        for batch in batches:
            self.ask(save, alone=True)  # processes do not have as many batches as each other
            yield batch

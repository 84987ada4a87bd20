"""Errors a user can cause, and signals: one line that says what was wrong and what to do, no traceback."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from .files import printable


class UserError(ValueError):
    """Something the caller can put right. The message is one line: what was got, what was wanted, what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM. Like Ctrl-C it ends whatever goes on."""


EXIT_CODES = {KeyboardInterrupt: 130, Terminated: 143}


def leave_on_interrupt() -> None:
    """Have Ctrl-C end the process without a traceback while a script's modules are imported, before `run_script`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored, as under nohup
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def run_script(main: Callable[[], object]) -> None:
    """Run a script's `main` and leave the process with its exit code.

    0 when it returns; 2 and one line on stderr for a `UserError` or an operating-system error (a full disk, a read-only
    folder); 130 for Ctrl-C and 143 for SIGTERM, and one line: what their exception says. A second Ctrl-C ends the
    process at once. Any other exception is a bug of ours and keeps its traceback.
    """
    received = _raise_signals()
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        main()
    except UserError as error:
        message, code = f"error: {' '.join(str(error).split())}", 2
    except MemoryError as error:
        message, code = f"error: not enough memory: {str(error) or 'see the sizes that were asked for'}", 2
    except BrokenPipeError:  # the reader of our output left, as in `eval.py | head`
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        message, code = f"error: {f'{error.strerror}: {error.filename}' if error.filename else error}", 2
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            kind, said = type(error), str(error)
        elif received:  # an import that was interrupted raises something of its own
            kind, said = received[0], ""
        else:
            raise
        message, code = said or ("terminated" if kind is Terminated else "interrupted"), EXIT_CODES[kind]
    else:
        return
    print(printable(message), file=sys.stderr)
    sys.exit(code)


def _raise_signals() -> list[type[KeyboardInterrupt]]:
    """Have SIGINT and SIGTERM raise, once, where the process does not ignore them; the list of what they raised."""
    received: list[type[KeyboardInterrupt]] = []
    began = time.monotonic()

    def raise_once(number: int, frame: object) -> None:
        nonlocal began
        if not received:
            began = time.monotonic()
            received.append(KeyboardInterrupt if number == signal.SIGINT else Terminated)
            raise received[0]
        if number == signal.SIGINT and time.monotonic() - began > 0.3:  # `timeout -s INT` sends the first one twice
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, raise_once)
    return received

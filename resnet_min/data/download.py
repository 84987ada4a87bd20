"""Downloads that say quickly when they cannot be had."""

from __future__ import annotations

import io
import socket
import sys
import threading
import urllib.request
from contextlib import contextmanager, redirect_stderr


@contextmanager
def downloading(stalled: float = 60):
    """Gives torchvision's download a time limit for a silent connection, and a progress bar on terminals only."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(stalled)
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def unreachable(url: str, seconds: float = 10) -> str | None:
    """Why `url` cannot be had, found out within `seconds`; None where it can."""
    why: list[str | None] = [f"no answer in {seconds:g} s"]

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            why[0] = None
        except Exception as error:
            why[0] = str(error)

    thread = threading.Thread(target=ask, daemon=True)  # a thread, because looking up a name has no time limit
    thread.start()
    thread.join(seconds)
    return why[0]

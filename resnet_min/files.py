"""Files that are always whole. Imports no torch."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def printable(text: str) -> str:
    """A name as one line can show it: control characters, and bytes of a file's name that are no text, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_whole(path: str | Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that `path` always holds a whole one: temporary name, flush to disk, rename. Makes its folder.

    content: a text, or what writes to an open file. Raises OSError (a full disk, a read-only folder) and what `content`
    raises; `path` then holds what it held before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # of its own: two processes do not meet
    try:
        with open(temporary, "xb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Files that are always whole. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not a POSIX system: temporary files of killed processes stay there
    fcntl = None


def printable(text: str) -> str:
    """A name as one line can show it: control characters, and bytes of a file's name that are no text, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Have an OSError of this block name `path`: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def write_whole(path: str | Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Write a file so that `path` always holds a whole one: temporary name, flush to disk, rename. Makes its folder.

    A link stays one, and a file keeps its mode. What is there and no regular file, such as a device or a pipe, is
    written to as it is.

    content: a text, or what writes to an open file. Raises OSError that names `path` (a full disk, a read-only folder)
    and what `content` raises; `path` then holds what it held before.
    """
    with named(path):
        mode = os.stat(path).st_mode if os.path.exists(path) else None
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as file:
                _write(file, content)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _temporary(target)
        try:
            with file:
                _write(file, content)
                file.flush()
                os.fsync(file.fileno())
                if mode is not None:
                    with contextlib.suppress(OSError):  # a file system without modes
                        os.chmod(temporary, stat.S_IMODE(mode))
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _write(file: BinaryIO, content: str | Callable[[BinaryIO], object]) -> None:
    if isinstance(content, str):
        file.write(content.encode())
    else:
        content(file)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, of a name of its own: two processes do not meet. Locked, so that `sweep` spares it."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        file = open(temporary, "xb")
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # otherwise `sweep` saw it first
            return temporary, file
        file.close()


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`, where it is there; nobody's still in use."""
    for path in folder.glob(f".*.{'[0-9a-f]' * 32}.tmp") if fcntl else ():
        with contextlib.suppress(OSError), open(path, "r+b") as file:  # not ours to remove, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its writer lives
            path.unlink()

"""Decoded images on disk: one file for a data set and an image size, replaced whole."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import sweep, write_whole

FORMAT = 1  # of the cache: raise it when what is decoded changes, and old caches are rebuilt


def cached(
    name: str,
    folder: Path,
    stamp: str,
    decode: Callable[[], dict[str, Any]],
    is_sound: Callable[[dict[str, Any]], bool],
    cache_dir: str | os.PathLike | None,
    keep: bool = True,
) -> dict[str, Any]:
    """What `decode` makes of the files in `folder`, from the cache where it is and `stamp` has not changed.

    decode returns a dict of tensors and plain values; is_sound says whether one could be of it, and may raise. What is
    only a part of the data is not to be kept.
    A folder or file that others may write is neither read nor written, and that is said. Raises UserError for a
    `cache_dir` that cannot be written; without one it warns and goes on.
    """
    where = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()
    file = f"{name}-{where[:12]}.pt"
    stamp = f"{FORMAT} {stamp}"
    home = os.path.expanduser("~")  # unchanged where there is no home
    if cache_dir is not None:
        places = [Path(cache_dir)]
    else:
        places = [folder / ".resnet_min_cache"] + [Path(home, ".cache", "resnet_min")] * (home != "~")
    shared = [path for place in places for path in (place, place / file) if _is_shared(path)]
    for path in shared:
        print(f"warning: the cache {path} is not used, because others may write to it", file=sys.stderr)
    places = [place for place in places if place not in shared]
    for place in places:
        sweep(place)
        content = None if place / file in shared else _read_cache(place / file, stamp, is_sound)
        if content is not None:
            return content
    if not keep:
        return decode()
    if cache_dir is not None:  # before the work of decoding
        for place in places:
            _make_writable(place)
    content = {**decode(), "stamp": stamp}
    if not places:
        return content
    for place in places:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if place / file in shared:
                (place / file).unlink()  # or what is written would keep its mode
            write_whole(place / file, partial(torch.save, content))
            return content
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a disk that fills up
            why = getattr(error, "strerror", None) or "no space left?"
    if cache_dir is not None:
        raise UserError(f"cannot write to --cache-dir {cache_dir}: {why}")
    print(
        f"warning: no writable cache for {name}, so every run decodes it again ({places[-1]}: {why})", file=sys.stderr
    )
    return content


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to --cache-dir {folder}: {error.strerror}") from error


def _is_shared(path: Path) -> bool:
    """Whether a file or folder is there, and anyone but this user and root may write it."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid not in (0, os.getuid()) or bool(status.st_mode & 0o022)


def _read_cache(file: Path, stamp: str, is_sound: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """What `cached` wrote, mapped; None where it is missing, damaged or of other files."""
    try:
        content = torch.load(file, mmap=True, weights_only=True)
        return content if content["stamp"] == stamp and is_sound(content) else None
    except Exception:  # anything may be in a damaged file
        return None

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
    name: str, folder: Path, stamp: str, decode: Callable[[], dict[str, Any]], cache_dir: str | os.PathLike | None
) -> dict[str, Any]:
    """What `decode` makes of the files in `folder`, from the cache where it is and `stamp` has not changed.

    decode returns a dict of tensors and plain values, whose "splits" hold "images", "labels" and "sums" of one length.
    Raises UserError for a `cache_dir` that cannot be written; without one it warns and goes on.
    """
    where = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()
    file = f"{name}-{where[:12]}.pt"
    stamp = f"{FORMAT} {stamp}"
    home = os.path.expanduser("~")  # unchanged where there is no home
    if cache_dir is not None:
        places = [Path(cache_dir)]
    else:
        places = [folder / ".resnet_min_cache"] + [Path(home, ".cache", "resnet_min")] * (home != "~")
    for place in places:
        sweep(place)
        content = _read_cache(place / file, stamp)
        if content is not None:
            return content
    if cache_dir is not None:  # before the work of decoding
        _make_writable(places[0])
    content = {**decode(), "stamp": stamp}
    for place in places:
        try:
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
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to --cache-dir {folder}: {error.strerror}") from error


def _read_cache(file: Path, stamp: str) -> dict[str, Any] | None:
    """What `cached` wrote, mapped; None where it is missing, damaged or of other files."""
    try:
        content = torch.load(file, mmap=True, weights_only=True)
        sound = all(len(p["images"]) == len(p["labels"]) == len(p["sums"]) for p in content["splits"].values())
        return content if sound and content["stamp"] == stamp else None
    except Exception:  # anything may be in a damaged file
        return None

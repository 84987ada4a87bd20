"""Named data sets and image folders as uint8 tensors, split for training, validation and test.

Every picture becomes RGB; where it is not `image_size` square, its shorter side is resized to that (bilinear,
antialiased) and its middle kept. The order of a split is fixed: classes by name, files by name within a class; a named
data set keeps its own order.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import printable
from .cache import cached
from .decode import decode, is_sound, spread
from .sources import NEEDED, Source, find

S = TypeVar("S")  # images and targets of any task


@dataclass(frozen=True)
class Split:
    """Images and their classes, on the CPU; mapped from the cache copy-on-write, so writing to them changes no file."""

    images: Tensor  # uint8 [N,H,W,3]
    labels: Tensor  # int64 [N], indices into Dataset.classes

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Sequence[int] | np.ndarray) -> Split:
        """A copy of these images in memory, by NumPy, which gathers whole images several times as fast as torch."""
        return Split(torch.from_numpy(self.images.numpy().take(index, 0)), self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """What `load` returns."""

    name: str  # cifar10, cifar100, digits, or the folder's own name
    source: str  # the `data` that loads it again from any working directory: the set's name or an absolute path
    classes: tuple[str, ...]
    train: Split | None  # None only where `load` did not need it
    val: Split | None
    test: Split
    mean: tuple[float, float, float] | None  # of each channel over all pixels of `train`, where white is 1
    std: tuple[float, float, float] | None  # likewise: all pixels' deviation, not the mean of the images' own ones

    @property
    def splits(self) -> dict[str, Split]:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def summary(self) -> str:
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in self.splits.items())
        return f"{sizes}; {'x'.join(map(str, self.train.images.shape[1:3]))}; {len(self.classes)} classes"

    def contents(self) -> dict[str, str]:
        counts = {name: part.labels.bincount(minlength=len(self.classes)) for name, part in self.splits.items()}
        return {
            name: ", ".join(f"{printable(c)} {n}" for c, n in zip(self.classes, labels.tolist(), strict=True))
            for name, labels in counts.items()
        }


def load(
    data: str | os.PathLike,
    *,
    data_dir: str | os.PathLike = "data",
    cache_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    val_size: int = 0,
    seed: int = 0,
    limit: int | None = None,
    train_share: float = 1.0,
    needed: Collection[str] = NEEDED,
    normalised: bool = False,
) -> Dataset:
    """Load `cifar10`, `cifar100`, `digits`, `svhn`, or the image folder, CSV or array at the path `data`.

    data_dir: where cifar-10-batches-py or cifar-100-python is, or is downloaded to.
    cache_dir: where decoded images are kept. By default beside the data, or else in the user's cache folder.
    image_size: height and width of every image, in pixels (default 32).
    val_size: images held out of the training split, from each class in proportion, drawn from `seed`.
    limit: at most this many images of each split, evenly spread over it; mean and std stay those of all.
    train_share: of the training images left, use this share, likewise spread; at least one.
    needed: the splits that an image folder must have; ("test",) is enough to look at a trained network.
    normalised: mean and std are known, so that with a limit, and no images held out, no others need be decoded; the
    mean and std are then of these.

    Raises UserError for data that is missing, damaged, unreadable or inconsistent, and for a cache_dir that cannot be
    written. Without a writable default cache it warns and goes on.
    """
    data, size = os.fspath(data), 32 if image_size is None else image_size
    if size < 1:
        raise UserError(f"--image-size must be at least 1; got {size}")
    source = find(data, Path(data_dir), needed)
    content = _content(source, size, cache_dir, limit if normalised and not val_size else None)

    parts = content["splits"]
    splits = {name: Split(part["images"], part["labels"]) for name, part in parts.items()}
    sums = parts["train"]["sums"] if "train" in parts else None
    if val_size:
        if sums is None:
            raise UserError(f"{source.source} has no train/ to hold {val_size} validation images out of")
        whole = splits["train"]
        if "val" in splits:
            raise UserError(f"{source.source} has a val/ of its own: drop --val-size, or move that folder away")
        if not 0 < val_size < len(whole):
            raise UserError(f"--val-size must leave some of the {len(whole)} training images; got {val_size}")
        kept, held = stratified(whole.labels.numpy(), val_size, seed)
        splits["train"], splits["val"] = whole.subset(kept), whole.subset(held)
        sums = sums[kept]
    mean, std = (None, None) if sums is None else mean_std(sums, pixels=len(sums) * size * size)
    splits = lessened(splits, limit, train_share)
    classes = tuple(content["classes"])
    train, val = splits.get("train"), splits.get("val")
    return Dataset(source.name, source.source, classes, train, val, splits["test"], mean, std)


def lessened(splits: Mapping[str, S], limit: int | None, train_share: float) -> dict[str, S]:
    """At most `limit` images of each split, and of those to train on the share `train_share`, evenly spread over it."""
    less = {}
    for name, part in splits.items():
        count = len(part) if limit is None else min(limit, len(part))
        if name == "train":
            count = max(1, round(count * train_share))
        less[name] = part.subset(spread(len(part), count)) if count < len(part) else part
    return less


def _content(
    source: Source, size: int, cache_dir: str | os.PathLike | None, limit: int | None = None
) -> dict[str, Any]:
    """The decoded data set, from the cache where it is, or decoded and put there; or `limit` images of each split."""
    if source.folder is None:
        return decode(source, size)
    name = f"{source.name}-{size}"
    sound = partial(is_sound, size=size)
    made = partial(decode, source, size, limit)
    return cached(name, source.folder, source.stamp, made, sound, cache_dir, keep=limit is None)


def stratified(labels: np.ndarray, held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept and held out, each rising; class sizes in proportion, by largest remainder."""
    sizes, remainder = np.divmod(np.bincount(labels) * held, len(labels))
    sizes[np.argsort(-remainder, kind="stable")[: held - sizes.sum()]] += 1
    rng = np.random.default_rng(seed % 2**64)  # it takes no negative seed
    out = np.zeros(len(labels), dtype=bool)
    for label, size in enumerate(sizes):
        out[rng.permutation(np.flatnonzero(labels == label))[:size]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def mean_std(sums: Tensor, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """From each image's sum and sum of squares, int64 [N,2,3]. Whole numbers until the last step."""
    totals, squares = sums.sum(0).tolist()
    variances = [(pixels * b - a * a) / (255 * pixels) ** 2 for a, b in zip(totals, squares, strict=True)]
    # A channel that never varies is left undivided.
    return tuple(total / (255 * pixels) for total in totals), tuple(v**0.5 or 1.0 for v in variances)

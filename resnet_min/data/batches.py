"""Draws the order, crops, flips and angles of an epoch, and makes batches with them.

Everything random is drawn on the CPU from (seed, epoch) alone and handed to `ops.crop_flip` as tensors: every device
sees the same batches, and any step of any epoch can be drawn again without the ones before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..ops import crop_flip, make_table
from .splits import Split


@dataclass(frozen=True)
class Draws:
    """One epoch's parameters for N images, on the CPU. Batch k of size B is [k·B : (k+1)·B] of each."""

    index: Tensor  # int64 [N], which image; in training a permutation
    offset: Tensor  # int64 [N,2], (top, left) of the crop in the padded image, each in [0, 2·padding]
    flip: Tensor  # bool [N]
    angle: Tensor  # float64 [N], degrees

    def to(self, device: torch.device) -> Draws:
        return Draws(*(t.to(device) for t in self._all()))

    def split(self, size: int) -> list[Draws]:
        """`size` images at a time."""
        return [Draws(*parts) for parts in zip(*(t.split(size) for t in self._all()), strict=True)]

    def __getitem__(self, images: slice) -> Draws:
        return Draws(*(t[images] for t in self._all()))

    def __len__(self) -> int:
        return len(self.index)

    def _all(self) -> tuple[Tensor, ...]:
        return self.index, self.offset, self.flip, self.angle


def share(n: int, part: tuple[int, int]) -> slice:
    """Which of n things in a row are the k-th of m about equal parts, part being (k, m), k from 0; it may be none."""
    number, parts = part
    return slice(-(-n * number // parts), -(-n * (number + 1) // parts))


def growth(epoch: int, epochs: int, sizes: int) -> int:
    """Which of so many sizes, the first being 0, images have in an epoch, from 1; in the last epoch the last size."""
    return sizes - 1 if epoch >= epochs else (epoch - 1) * sizes // epochs


def draw(n: int, *, epoch: int, seed: int, padding: int, flip: float, rotation: float = 0.0) -> Draws:
    """The draws of one training epoch over `n` images; `flip` is a probability, `rotation` the largest angle.

    The order does not depend on the rest, so runs with and without augmentation see the same one.
    """
    rng = generator(seed, epoch)
    index = rng.permutation(n)
    offset = rng.integers(0, 2 * padding, (n, 2), endpoint=True)
    flips = rng.random(n) < flip
    angle = rng.uniform(-rotation, rotation, n)
    return Draws(*map(torch.from_numpy, (index, offset, flips, angle)))


def generator(seed: int, epoch: int) -> np.random.Generator:
    """The source of everything that is drawn in an epoch."""
    # SeedSequence mixes the two: neighbouring seeds and epochs have nothing in common. It takes no negative seed.
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(epoch,)))


def rotate(images: Tensor, angle: Tensor, fill: Tensor) -> Tensor:
    """Turn each image about its centre by its own angle, to the nearest pixel.

    images [B,C,H,W] float32, angle [B] in degrees counter-clockwise, fill [C] for what comes from outside.
    Equivalent to torchvision's rotate(image, angle, fill=fill), image by image: to the bit on a CPU.
    """
    height, width = images.shape[2:]
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    turn = torch.stack((cos, sin, -sin, cos), 1).view(-1, 2, 2).float()  # (x, y) -> where it comes from, as row vectors
    turn /= torch.tensor((0.5 * width, 0.5 * height), device=turn.device)
    y, x = (torch.arange(n, device=turn.device) - 0.5 * (n - 1) for n in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(1, -1, 2).expand(len(images), -1, -1).bmm(turn)
    inside = images.new_ones(len(images), 1, height, width)
    out = F.grid_sample(
        torch.cat((images, inside), 1), grid.view(-1, height, width, 2), "nearest", "zeros", align_corners=False
    )
    return torch.where(out[:, -1:] > 0, out[:, :-1], fill.view(-1, 1, 1)).contiguous(memory_format=torch.channels_last)


class Batches:
    """Batches of a split: (images [B,3,H,W] channels_last in `dtype`, labels int64 [B]) on `device`, each freshly made.

    The split is moved to `device` once; on the CPU it is used where it is. The last batch holds what is left over, so
    there are ceil(N / batch_size) of them: `len(batches)`.

    part: which part of how many this is, see `share`. To train on, of each batch: then the parts of all are its images,
    in order, and there may be none in one. To evaluate on, of all batches.

    mean, std: per channel, where white is 1. padding, flip, rotation: of `epoch` only, see `draw`.
    resize: height and width of every image in a batch (bilinear, antialiased: torchvision's Resize of a float tensor),
    after the crop and before the rotation. What either brings in from outside is black before normalisation.
    grow, epochs: `epochs` epochs are divided into equal parts, of which the first ones resize to the heights and widths
    in `grow`, and the last as `resize` says; so does the last epoch, however few there are.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        padding: int = 0,
        flip: float = 0.0,
        resize: int | None = None,
        rotation: float = 0.0,
        grow: tuple[int, ...] = (),
        epochs: int = 1,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ):
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.dtype, self.resizes, self.epochs = dtype, (*grow, resize), epochs
        # Resized and turned in float32, and then rounded once.
        self.table = make_table(mean, std, torch.float32 if resize or rotation or grow else dtype).to(device)
        self.batch_size, self.seed, self.part = batch_size, seed, part
        self.drawn: dict[str, Any] = dict(seed=seed, padding=padding, flip=flip, rotation=rotation)
        self.size = (resize, resize) if resize else tuple(self.images.shape[1:3])

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training: every image once, in the order and with the crops, flips and angles of `draw`.

        Raises UserError, before the first batch, where batch_size is above the number of images.
        """
        n = len(self.images)
        if self.batch_size > n:
            raise UserError(f"--batch-size {self.batch_size} is larger than the data: {n} training images")
        draws = draw(n, epoch=epoch, **self.drawn)
        batches = draws.to(self.images.device).split(self.batch_size)
        shards = [batch[share(len(batch), self.part)] for batch in batches]
        resize = self.resizes[growth(epoch, self.epochs, len(self.resizes))]
        return self._batches(shards, self.drawn["padding"], resize, turned=self.drawn["rotation"] > 0)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation: every image once, in order and as it is, or resized."""
        n = len(self.images)
        offset, flip, angle = torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
        batches = Draws(torch.arange(n), offset, flip, angle).to(self.images.device).split(self.batch_size)
        return self._batches(batches[share(len(batches), self.part)], 0, self.resizes[-1], turned=False)

    def _batches(
        self, batches: list[Draws], padding: int, resize: int | None, turned: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            images = crop_flip(self.images, batch.index, batch.offset, batch.flip, self.table, padding)
            if resize:
                size = (resize, resize)
                images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
            if turned:
                images = rotate(images, batch.angle, self.table[:, 0])
            yield images.to(self.dtype), self.labels[batch.index]

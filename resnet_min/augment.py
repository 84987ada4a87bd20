"""Draws the order, crops and flips of an epoch, and makes batches with them.

Everything random is drawn on the CPU from (seed, epoch) alone and handed to `ops.crop_flip` as tensors: every device
sees the same batches, and any step of any epoch can be drawn again without the ones before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Split
from .errors import UserError
from .ops import crop_flip, make_table


@dataclass(frozen=True)
class Draws:
    """One epoch's parameters for N images, on the CPU. Batch k of size B is [k·B : (k+1)·B] of each."""

    index: Tensor  # int64 [N], which image; in training a permutation
    offset: Tensor  # int64 [N,2], (top, left) of the crop in the padded image, each in [0, 2·padding]
    flip: Tensor  # bool [N]


def draw(n: int, *, epoch: int, seed: int, padding: int, flip: float) -> Draws:
    """The draws of one training epoch over `n` images; `flip` is a probability.

    The order does not depend on `padding` and `flip`, so runs with and without augmentation see the same one.
    """
    rng = generator(seed, epoch)
    index = rng.permutation(n)
    offset = rng.integers(0, 2 * padding, (n, 2), endpoint=True)
    flips = rng.random(n) < flip
    return Draws(torch.from_numpy(index), torch.from_numpy(offset), torch.from_numpy(flips))


def generator(seed: int, epoch: int) -> np.random.Generator:
    """The source of everything that is drawn in an epoch."""
    # SeedSequence mixes the two: neighbouring seeds and epochs have nothing in common. It takes no negative seed.
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(epoch,)))


class Batches:
    """Batches of a split: (images [B,3,H,W] channels_last in `dtype`, labels int64 [B]) on `device`, each freshly made.

    The split is moved to `device` once; on the CPU it is used where it is. The last batch holds what is left over, so
    there are ceil(N / batch_size) of them: `len(batches)`.

    mean, std: per channel, where white is 1. padding, flip: of `epoch` only, see `draw`.
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
        seed: int = 0,
    ):
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.table = make_table(mean, std, dtype).to(device)
        self.batch_size, self.padding, self.flip, self.seed = batch_size, padding, flip, seed

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training: every image once, in the order and with the crops and flips of `draw`.

        Raises UserError, before the first batch, where batch_size is above the number of images.
        """
        n = len(self.images)
        if self.batch_size > n:
            raise UserError(f"--batch-size {self.batch_size} is larger than the data: {n} training images")
        return self._batches(draw(n, epoch=epoch, seed=self.seed, padding=self.padding, flip=self.flip), self.padding)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation: every image once, in order and as it is."""
        n = len(self.images)
        index = torch.arange(n)
        return self._batches(Draws(index, torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)), 0)

    def _batches(self, draws: Draws, padding: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.images.device
        draws = [t.to(device).split(self.batch_size) for t in (draws.index, draws.offset, draws.flip)]
        for index, offset, flip in zip(*draws, strict=True):
            yield crop_flip(self.images, index, offset, flip, self.table, padding), self.labels[index]

"""Batches of a crowd: random crops with their density maps, and whole images with their counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.batches import generator, share
from ...errors import UserError
from ...ops import crop_flip, make_table
from .density import draw, head_widths
from .net import MAP_SCALE
from .reader import Split


class Batches:
    """Training batches: (images [B, 3, h, w] channels_last in `dtype`, maps float32 [B, 1, h / stride, w / stride]).

    The split is copied into the memory of `device` at once, so that no step waits for a disk. A map is `MAP_SCALE`
    times the density, in cells of stride × stride pixels, drawn for its crop.

    mean, std: per channel, where white is 1. crop: the side of random square crops, in pixels; None: whole images.
    zoom: crops are of crop / zoom to crop * zoom pixels, as far as the image has them, and resized to `crop`; so are
    places and adaptive widths of heads, but not `sigma`.
    part: which part of each batch this is, see `data.batches.share`; the sizes of all of a batch's images are alike.
    flip: probability of a mirror image. sigma: width of every head's Gaussian in pixels; None: geometry-adaptive.
    Raises UserError for a crop that is not a multiple of `stride`, or larger than an image.
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
        crop: int | None = None,
        zoom: float = 1.0,
        flip: float = 0.0,
        sigma: float | None = None,
        stride: int = 1,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ):
        if crop is not None:
            if crop % stride:
                raise UserError(f"--crop {crop} is not a multiple of {stride}, the stride of the net's maps")
            shorter, name = min((min(i.shape[:2]), name) for i, name in zip(split.images, split.names, strict=True))
            if shorter < crop:
                raise UserError(
                    f"{name} has a side of {shorter} pixels, less than --crop {crop}; "
                    f"--crop {shorter // stride * stride} would fit"
                )
        self.images = [image.to(device, copy=True) for image in split.images]
        self.points = [points.to(device) for points in split.points]
        self.widths = [head_widths(points, sigma).to(device) for points in split.points]
        self.table = make_table(mean, std, dtype).to(device)
        self.names, self.batch_size, self.crop = split.names, batch_size, crop
        self.zoom, self.flip, self.stride, self.seed, self.part = zoom, flip, stride, seed, part
        self.adaptive = sigma is None
        self.size = (crop, crop) if crop else tuple(self.images[0].shape[:2])

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, or a crop of it: order, places, flips and zooms are drawn from (seed, epoch) alone.

        Raises UserError where whole images of different sizes meet in a batch.
        """
        rng, n = generator(self.seed, epoch), len(self.images)
        draws = rng.permutation(n), rng.random((n, 2)), rng.random(n) < self.flip, self.zoom ** rng.uniform(-1, 1, n)
        for start in range(0, n, self.batch_size):
            batch = [drawn[start : start + self.batch_size] for drawn in draws]
            self._check_sizes(batch[0])
            shard = [drawn[share(len(drawn), self.part)] for drawn in batch]
            if len(shard[0]):
                yield self._batch(*shard)
            else:
                images, maps = self._batch(*(drawn[:1] for drawn in batch))
                yield images[:0], maps[:0]

    def _check_sizes(self, index: np.ndarray) -> None:
        sizes = [(self.crop, self.crop) if self.crop else tuple(self.images[i].shape[:2]) for i in index]
        if len(set(sizes)) > 1:
            named = ", ".join(
                f"{self.names[i]} {width}x{height}" for i, (height, width) in zip(index, sizes, strict=True)
            )
            raise UserError(f"images of different sizes in a batch ({named}): take --crop N, or --batch-size 1")

    def _batch(
        self, index: np.ndarray, places: np.ndarray, flips: np.ndarray, zooms: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        crops, maps = [], []
        for i, place, flipped, zoom in zip(index, places, flips, zooms, strict=True):
            image, points, widths = self.images[i], self.points[i], self.widths[i]
            size = side = tuple(image.shape[:2])
            if self.crop is not None:
                side = (min(round(self.crop / zoom), *size),) * 2
            top, left = (int(at * (whole - part + 1)) for at, whole, part in zip(place, size, side, strict=True))
            image = image[top : top + side[0], left : left + side[1]]
            if self.crop is not None and side[0] != self.crop:
                zoom = self.crop / side[0]
                image, points = resized(image, self.crop), points * zoom
                widths = widths * zoom if self.adaptive else widths
                size = tuple(round(extent * zoom) for extent in size)
                top, left, side = round(top * zoom), round(left * zoom), (self.crop, self.crop)
            crops.append(image)
            patch = draw(points, widths, size, (top, left, *side), self.stride)
            maps.append(patch.flip(1) if flipped else patch)
        images = normalised(torch.stack(crops), self.table, torch.from_numpy(flips))
        return images, MAP_SCALE * torch.stack(maps)[:, None]


class Whole:
    """For evaluation: the images of a split one by one, whole, at their own sizes.

    mean, std: as for `Batches`. part: which part of the split this is, see `data.batches.share`.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        part: tuple[int, int] = (0, 1),
    ):
        self.split, self.table, self.part = split, make_table(mean, std, dtype).to(device), part
        self.size = tuple(split.images[0].shape[:2])

    def __len__(self) -> int:
        return len(self.split)

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(image [1, 3, H, W] channels_last, its heads, float64 [1] on the CPU) of every image, in order."""
        mine = share(len(self), self.part)
        for image, count in zip(self.split.images[mine], self.split.counts[mine], strict=True):
            yield normalised(image.to(self.table.device)[None], self.table), count[None]


def resized(image: Tensor, side: int) -> Tensor:
    """uint8 [h, h, 3] -> uint8 [side, side, 3], bilinear and antialiased."""
    planes = image.permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    return planes.round_().clamp_(0, 255).byte()[0].permute(1, 2, 0).contiguous()


def normalised(images: Tensor, table: Tensor, flips: Tensor | None = None) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] channels_last, by the table of `ops.make_table`; flipped where told."""
    n, device = len(images), images.device
    flips = torch.zeros(n, dtype=torch.bool) if flips is None else flips
    offset = torch.zeros(n, 2, dtype=torch.int64, device=device)
    return crop_flip(images, torch.arange(n, device=device), offset, flips.to(device), table, 0)

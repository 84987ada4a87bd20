"""From pixels of any size to what a trained network takes, as it was shown its test images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .batches import Batches
from .decode import rgb
from .splits import Split

WANTED = "uint8 images [H, W, 3] or [B, H, W, 3], Pillow images, or a list of these"


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image: the shorter side resized to `size`, the middle kept, normalised, resized to `resize`.

    mean, std: of each channel, where white is 1. size, resize: height and width in pixels; None: no second resizing.
    The first is `decode.rgb` (Pillow), the second `Batches` (on the device). An image of `size` is only normalised.
    Raises UserError for a mean or std that is not three numbers, from 0 to 1, std above 0, or for a size below 1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    resize: int | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                values = tuple(map(float, given))
            except (TypeError, ValueError):
                values = ()
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                above = ", above 0" if name == "std" else ""
                raise UserError(f"{name} is 3 numbers, of red, green and blue{above}; got {given!r}")
            if not 0 <= min(values) <= max(values) <= 1:
                raise UserError(
                    f"{name} is from 0 to 1, where white is 1; divide by 255 where it is 255: got {given!r}"
                )
            object.__setattr__(self, name, values)
        if min(self.size, self.resize or 1) < 1:
            raise UserError(f"sizes are at least 1 pixel; got {self.size} and {self.resize}")

    def batches(
        self, images: Any, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Iterator[Tensor]:
        """`images`, as `pixels` takes them, in batches [B, 3, H, W] channels_last; without images one of [0, 3, H, W].

        Raises UserError as `pixels` does.
        """
        pixels = self.pixels(images)
        split = Split(pixels, torch.full((len(pixels),), -1))
        batches = Batches(
            split, batch_size=batch_size, mean=self.mean, std=self.std, resize=self.resize, device=device, dtype=dtype
        )
        return (batch for batch, _ in batches.ordered())

    def pixels(self, images: Any) -> Tensor:
        """uint8 [N, size, size, 3] of images: uint8 [H, W, 3] or [B, H, W, 3], Pillow images, or a list of these.

        Arrays, tensors and Pillow images may be of any size, those of a list of several. Raises UserError for anything
        else, and for a Pillow image whose file is damaged.
        """
        if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4:
            batch = as_tensor(images, "the batch")
            if batch.shape[1:3] == (self.size, self.size):
                return batch
            images = list(batch)
        elif isinstance(images, (list, tuple)):
            images = list(images)
        else:
            return self.fit(images, "the image")[None]
        sized = [self.fit(image, f"image {number}") for number, image in enumerate(images)]
        return torch.stack(sized) if sized else torch.empty((0, self.size, self.size, 3), dtype=torch.uint8)

    def fit(self, image: Any, name: str) -> Tensor:
        """One image as uint8 [size, size, 3]; `name` is what to call it in an error."""
        from PIL import Image

        if not isinstance(image, Image.Image):
            image = as_tensor(image, name, dimensions=3)
            if image.shape[:2] == (self.size, self.size):
                return image
            image = Image.fromarray(image.cpu().numpy())
        try:
            return torch.from_numpy(rgb(image, self.size).copy())
        except Exception as error:  # Pillow's readers raise many kinds
            raise UserError(f"{name} cannot be read: {error}") from error


def as_tensor(images: Any, name: str, dimensions: int = 4) -> Tensor:
    """A uint8 array or tensor whose last dimension is 3 as a tensor. Raises UserError for anything else."""
    if not isinstance(images, (Tensor, np.ndarray)):
        raise UserError(f"predict takes {WANTED}; {name} is {type(images).__name__}")
    kind = str(images.dtype).removeprefix("torch.")
    if kind != "uint8" or images.ndim != dimensions or images.shape[-1] != 3 or 0 in images.shape[-3:]:
        raise UserError(f"predict takes {WANTED}; {name} is {kind} {list(images.shape)}")
    # A copy where torch cannot have the array: with strides that run backwards, or read-only.
    return images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, requirements=["C", "W"]))

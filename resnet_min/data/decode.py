"""Pictures to pixels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .sources import Source

if TYPE_CHECKING:
    import PIL.Image

CHUNK = 64  # images that a thread decodes at a time


def decode(source: Source, size: int) -> dict[str, Any]:
    """The whole data set at `size`: what the cache holds."""
    from tqdm import tqdm

    classes, splits = source.read()
    content = {"classes": list(classes), "splits": {}}
    total = sum(len(items) for items, _ in splits.values())
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without Python's lock
    try:
        with tqdm(total=total, desc=f"decoding {source.name}", disable=None) as bar:  # None: on terminals only
            for name, (items, labels) in splits.items():
                images, sums = _decode_split(items, size, pool, bar)
                labels = torch.as_tensor(np.asarray(labels, dtype=np.int64))
                content["splits"][name] = {"images": images, "labels": labels, "sums": sums}
    finally:  # after an error or Ctrl-C, without what is still waiting
        pool.shutdown(cancel_futures=True)
    return content


def _decode_split(items: Any, size: int, pool: ThreadPoolExecutor, bar: Any) -> tuple[Tensor, Tensor]:
    """Files or arrays → uint8 [N,size,size,3], and each image's sum and sum of squares by channel, int64 [N,2,3]."""
    images, sums = np.empty((len(items), size, size, 3), np.uint8), np.empty((len(items), 2, 3), np.int64)

    def decode(start: int) -> int:
        chunk = slice(start, start + CHUNK)
        for i, item in enumerate(items[chunk], start):
            images[i] = pixels(item, size)
        values = images[chunk].astype(np.uint32)
        sums[chunk, 0] = values.sum((1, 2), dtype=np.int64)
        sums[chunk, 1] = (values * values).sum((1, 2), dtype=np.int64)
        return len(values)

    for done in pool.map(decode, range(0, len(items), CHUNK)):
        bar.update(done)
    return torch.from_numpy(images), torch.from_numpy(sums)


def pixels(item: str | np.ndarray, size: int | None) -> np.ndarray:
    """A file's path, or pixels [h,w] or [h,w,3] → uint8 [size,size,3]; [h,w,3] where `size` is None."""
    from PIL import Image

    try:
        with Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(item) as image:
            return rgb(image, size)
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(f"cannot read the image {item}: {error}") from error


def rgb(image: PIL.Image.Image, size: int | None) -> np.ndarray:
    """A Pillow image of any mode → uint8 [size,size,3]; its own [h,w,3] where `size` is None.

    A camera's note of how it was held is followed, alpha is dropped, grey of 16 bits is rounded to 8. The shorter side
    is resized to `size` (bilinear, antialiased) and the middle kept. Raises what Pillow does where it is damaged.
    """
    from PIL import Image, ImageOps

    image.load()
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:  # dropped; by way of RGBA, where every palette's colours are kept
        image = image.convert("RGBA")
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def conversion(file: str, size: tuple[int, int]) -> str:
    """What was done to a picture to make it RGB of `size` (height, width), in words; empty where nothing was."""
    from PIL import Image

    height, width = size
    with Image.open(file) as original:
        was, kind = f"{original.width}x{original.height} {original.mode}", original.format
        fitted = sorted(original.size) != sorted(size)
    if was == f"{width}x{height} RGB":
        return ""
    return f"{was} {kind} to {width}x{height} RGB" + " (shorter side resized, centre cropped)" * fitted

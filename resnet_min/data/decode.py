"""Pictures to pixels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .sources import Source

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
    from PIL import Image, ImageOps

    try:
        with Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(item) as image:
            image.load()
            if "exif" in image.info:  # a camera's note of how it was held
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            if image.has_transparency_data:  # dropped; by way of RGBA, where every palette's colours are kept
                image = image.convert("RGBA")
            image = image.convert("RGB")
            if size is not None and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(f"cannot read the image {item}: {error}") from error


def read_image(file: str, size: int) -> tuple[Tensor, str]:
    """A picture as uint8 [size, size, 3], and what was done to it, if anything. Raises UserError as `pixels` does."""
    from PIL import Image

    image = torch.tensor(pixels(file, size))
    with Image.open(file) as original:
        was, kind = f"{original.width}x{original.height} {original.mode}", original.format
    if was == f"{size}x{size} RGB":
        return image, ""
    return image, f"{was} {kind} to {size}x{size} RGB (shorter side resized, centre cropped)"

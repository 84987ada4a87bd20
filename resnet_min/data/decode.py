"""Pictures to pixels."""

from __future__ import annotations

import math
import os
import stat
import warnings
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
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow knows others, which start other programs
MOST_PIXELS = 2**26  # of a picture: decoding takes up to 12 bytes for each


def decode(source: Source, size: int, limit: int | None = None) -> dict[str, Any]:
    """The whole data set at `size`: what the cache holds. limit: at most this many images of each split (`spread`)."""
    from tqdm.auto import tqdm

    classes, splits = source.read()
    if limit is not None:
        for name, (items, labels) in splits.items():
            some = spread(len(items), limit)
            splits[name] = [items[i] for i in some], np.asarray(labels)[some]
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


def spread(there: int, wanted: int) -> np.ndarray:
    """The places of at most `wanted` of as many as are there, evenly spread over them."""
    count = min(there, wanted)
    return np.arange(count) * there // max(1, count)


def _decode_split(items: Any, size: int, pool: ThreadPoolExecutor, bar: Any) -> tuple[Tensor, Tensor]:
    """Files or arrays → uint8 [N,size,size,3], and each image's sum and sum of squares by channel, int64 [N,2,3]."""
    shape = (len(items), size, size, 3)
    if (needed := math.prod(shape)) > (there := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise UserError(f"{len(items):,} images at {size}x{size} take {needed:,} bytes; this machine has {there:,}")
    images, sums = np.empty(shape, np.uint8), np.empty((len(items), 2, 3), np.int64)

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

    if isinstance(item, np.ndarray):
        return rgb(Image.fromarray(item), size)
    try:
        with open_picture(item) as image:
            return rgb(image, size)
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(f"cannot read the image {item}: {error}") from error


def open_picture(file: str) -> PIL.Image.Image:
    """A regular file of one of FORMATS and of at most MOST_PIXELS, opened; raises OSError and ValueError for others."""
    from PIL import Image

    if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would never end
        raise ValueError("it is no regular file")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of what is refused here
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(f"{image.width}x{image.height} are more than {MOST_PIXELS:,} pixels")
    return image


def rgb(image: PIL.Image.Image, size: int | None) -> np.ndarray:
    """A Pillow image of any mode → uint8 [size,size,3]; its own [h,w,3] where `size` is None.

    A camera's note of how it was held is followed, alpha is dropped, grey of 16 bits is rounded to 8. The shorter side
    is resized to `size` (bilinear, antialiased) and the middle kept. Raises what Pillow does where it is damaged, and
    ValueError where its values are of 32 bits: what white is among them nobody says.
    """
    from PIL import Image, ImageOps

    image.load()
    if image.mode == "F" or (image.mode == "I" and not _has_16_bits(image)):
        raise ValueError(f"it holds {'float' if image.mode == 'F' else 'int'}32 values; save it with 8 or 16 bits")
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


def _has_16_bits(image: PIL.Image.Image) -> bool:
    """Whether an image of mode "I", 32 bits, was made so of a file of 16, as Pillow does of some."""
    bits = getattr(image, "tag_v2", {}).get(258)  # TIFF's BitsPerSample
    return image.format in ("PNG", "PPM") or bits == (16,)


def is_sound(content: dict[str, Any], size: int) -> bool:
    """Whether a cache's content is what `decode` makes at `size`: dtypes, shapes and ranges."""
    for part in content["splits"].values():
        images, labels, sums = part["images"], part["labels"], part["sums"]
        shapes = (images.shape[1:], labels.shape[1:], sums.shape[1:]) == ((size, size, 3), (), (2, 3))
        if not shapes or (images.dtype, labels.dtype, sums.dtype) != (torch.uint8, torch.int64, torch.int64):
            return False
        if not 0 < len(images) == len(labels) == len(sums) or sums.min() < 0 or sums.max() > 255**2 * size**2:
            return False
        if labels.min() < 0 or labels.max() >= len(content["classes"]):
            return False
    names = content["classes"]
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and "test" in content["splits"]


def conversion(file: str, size: tuple[int, int]) -> str:
    """What was done to a picture to make it RGB of `size` (height, width), in words; empty where nothing was."""
    height, width = size
    with open_picture(file) as original:
        was, kind = f"{original.width}x{original.height} {original.mode}", original.format
        fitted = sorted(original.size) != sorted(size)
    if was == f"{width}x{height} RGB":
        return ""
    return f"{was} {kind} to {width}x{height} RGB" + " (shorter side resized, centre cropped)" * fitted

"""Crop, flip and normalise a batch of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backend
from .checks import FLOAT_NAMES, FLOATS, check_device
from .checks import check as check_argument


def crop_flip(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> Tensor:
    """Zero-pad images, crop them to their own size, flip, and look each value up in its channel's table.

    images   uint8 [N, H, W, 3]
    index    int64 [B], each in [0, N): repeats and any order are fine
    offset   int64 [B, 2] = (top, left), each in [0, 2 * padding]; equal to padding, nothing moves
    flip     bool  [B]: mirrored left to right, after the crop
    table    float32, bfloat16, float16 or float64 [3, 256]; a pixel outside the image is table[c, 0]
    returns  [B, 3, H, W] in table's dtype, channels_last

    Raises ValueError for a wrong dtype, shape, device or padding; IndexError for an index or offset out of range (on
    CUDA that is a device assertion: nothing waits for the device). Equivalent to, for each b,
    `table[c, hflip_if(flip[b], pad(images[index[b]], padding)[top:top + H, left:left + W])[y, x, c]]`.
    """
    if backend.supported("crop_flip", images, index, offset, flip, table):
        return backend.call("crop_flip", check, images, index, offset, flip, table, padding)
    return reference(images, index, offset, flip, table, padding)


def reference(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> Tensor:
    """`crop_flip` in PyTorch, on any device."""
    check(images, index, offset, flip, table, padding)
    (n, height, width, _), batch, device = images.shape, index.shape[0], images.device
    # Indexing raises on a value past the end, but may take a negative one from the back: send those past the end too.
    index = torch.where(index < 0, n, index)
    offset = torch.arange(2 * padding + 1, device=device)[torch.where(offset < 0, 2 * padding + 1, offset)]
    padded = torch.nn.functional.pad(images.index_select(0, index), (0, 0, padding, padding, padding, padding))
    rows = offset[:, :1] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = offset[:, 1:] + torch.where(flip[:, None], width - 1 - columns, columns)
    # A flat index_select is the fastest gather that torch has on a CPU, with int32 more so.
    rows = (torch.arange(batch, device=device)[:, None] * padded.shape[1] + rows) * padded.shape[2]
    pixels = padded.view(-1, 3).index_select(0, (rows[:, :, None] + columns[:, None, :]).flatten())
    entries = pixels.int() + torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=device)
    out = table.flatten().index_select(0, entries.flatten())
    return out.view(batch, height, width, 3).permute(0, 3, 1, 2)


def check(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> None:
    """The checks of `crop_flip` that need metadata only."""
    check_argument("crop_flip", "images", images, "uint8 [N, H, W, 3]", (torch.uint8,), (None, None, None, 3))
    check_argument("crop_flip", "index", index, "int64 [B]", (torch.int64,), (None,))
    batch = index.shape[0]
    check_argument("crop_flip", "offset", offset, f"int64 [{batch}, 2]", (torch.int64,), (batch, 2))
    check_argument("crop_flip", "flip", flip, f"bool [{batch}]", (torch.bool,), (batch,))
    check_argument("crop_flip", "table", table, f"{FLOAT_NAMES} [3, 256]", FLOATS, (3, 256))
    if not 0 <= padding <= 2**24:
        raise ValueError(f"crop_flip: padding must be 0 to 2**24; got {padding}")
    check_device("crop_flip", images, index=index, offset=offset, flip=flip, table=table)


@backend.takes("crop_flip")
def takes(images: Tensor, *_: Tensor) -> bool:
    """Not pixels with gaps between them (a permuted NCHW data set): all would have to be copied, every time."""
    return images.dim() != 4 or (images.stride(3) == 1 and (images.shape[2] == 1 or images.stride(2) == 3))


@backend.fake("crop_flip")
def _(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> Tensor:
    check(images, index, offset, flip, table, padding)
    return table.new_empty((index.shape[0], *images.shape[1:])).permute(0, 3, 1, 2)


def make_table(mean: Any, std: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """`crop_flip`'s table for normalised images: [3, 256], table[c, v] = (v / 255 - mean[c]) / std[c].

    mean, std  3 numbers each, of values in 0 to 1. Computed in float32, as torchvision does, then rounded to `dtype`.
    """
    mean, std = (torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1) for x in (mean, std))
    if mean.numel() != 3 or std.numel() != 3 or not (std > 0).all():
        raise ValueError(f"make_table: mean and std must be 3 numbers each, std above 0; got {mean} and {std}")
    return ((torch.arange(256, dtype=torch.float32) / 255 - mean) / std).to(dtype)

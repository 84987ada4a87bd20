"""The pure-PyTorch twin of every operator: same name, same signature, same errors. Runs on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    check_crop_flip(images, index, offset, flip, table, padding)
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


def check_crop_flip(images: Tensor, index: Tensor, offset: Tensor, flip: Tensor, table: Tensor, padding: int) -> None:
    """The checks of `crop_flip` that need metadata only, in the order and words of csrc/common.h."""
    _check("crop_flip", "images", images, "uint8 [N, H, W, 3]", (torch.uint8,), (None, None, None, 3))
    _check("crop_flip", "index", index, "int64 [B]", (torch.int64,), (None,))
    batch = index.shape[0]
    _check("crop_flip", "offset", offset, f"int64 [{batch}, 2]", (torch.int64,), (batch, 2))
    _check("crop_flip", "flip", flip, f"bool [{batch}]", (torch.bool,), (batch,))
    _check("crop_flip", "table", table, "float32, bfloat16, float16 or float64 [3, 256]", _TABLE_DTYPES, (3, 256))
    if not 0 <= padding <= 2**24:
        raise ValueError(f"crop_flip: padding must be 0 to 2**24; got {padding}")
    for name, tensor in (("index", index), ("offset", offset), ("flip", flip), ("table", table)):
        if tensor.device != images.device:
            raise ValueError(f"crop_flip: {name} must be on {images.device}; got {tensor.device}")


def _check(
    operator: str, name: str, got: Tensor, wanted: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]
) -> None:
    """Raise ValueError unless `got` has one of `dtypes` and `shape`, where None is any size."""
    fits = got.dim() == len(shape) and all(w is None or w == g for g, w in zip(got.shape, shape, strict=True))
    if got.dtype not in dtypes or not fits:
        dtype = str(got.dtype).removeprefix("torch.")
        raise ValueError(f"{operator}: {name} must be {wanted}; got {dtype} {list(got.shape)}")

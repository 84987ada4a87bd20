"""What the operators' checks have in common: every message says what was wanted and what was got."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT_NAMES = "float32, bfloat16, float16 or float64"


def check(
    operator: str, name: str, got: Tensor, wanted: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]
) -> None:
    """Raise ValueError unless `got` has one of `dtypes` and `shape`, where None is any size."""
    fits = got.dim() == len(shape) and all(w is None or w == g for g, w in zip(got.shape, shape, strict=True))
    if got.dtype not in dtypes or not fits:
        raise ValueError(f"{operator}: {name} must be {wanted}; got {describe(got)}")


def check_device(operator: str, first: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless all are on the first one's device."""
    for name, got in others.items():
        if got is not None and got.device != first.device:
            raise ValueError(f"{operator}: {name} must be on {first.device}; got {got.device}")


def describe(tensor: Tensor) -> str:
    """As in "float32 [4, 16]"."""
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


def dtype_name(dtype: torch.dtype) -> str:
    """As in "float32"."""
    return str(dtype).removeprefix("torch.")

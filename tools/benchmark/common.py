"""What several tables share: the data's normalisation, the dtypes of a device, and how close is close."""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_min.training import hardware

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of CIFAR-10's training images
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.05, torch.float16: 0.01}  # a GPU's float32 convolutions are TF32


def dtypes(device: torch.device) -> list[torch.dtype]:
    """float32, and what the device has arithmetic for."""
    if device.type == "cuda":
        return [torch.float32, torch.bfloat16, torch.float16]
    return [torch.float32] + [torch.bfloat16] * (hardware.hardware("cpu").dtype == torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    """Such as "float32"."""
    return str(dtype).removeprefix("torch.")


def check_close(name: str, got: Tensor, wanted: Tensor) -> None:
    """Raise AssertionError unless `got` is `wanted`, as well as the dtype of `got` lets it."""
    error = ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()
    if not error < TOLERANCE[got.dtype]:
        raise AssertionError(f"{name} computes something else: it is off by {error:.2g}")

"""The operators: each has a compiled form and a reference in PyTorch, side by side in the file of its name."""

from typing import NamedTuple

from . import backend, bn_add_relu, conv3x3, conv_bn_relu, crop_flip, fused_net, sync_bn


class Operator(NamedTuple):
    """`name` is that of csrc/NAME, kernels/NAME.py and tests/kernels/test_NAME.py."""

    name: str
    cuda_threads: int = 0  # a block of its CUDA kernels; 0 where it has none


OPERATORS = (
    Operator("crop_flip", cuda_threads=256),
    Operator("conv_bn_relu", cuda_threads=128),
    Operator("fused_net"),
    Operator("conv3x3"),
    Operator("bn_add_relu", cuda_threads=256),
)

__all__ = [
    "OPERATORS", "Operator", "backend", "bn_add_relu", "conv3x3", "conv_bn_relu", "crop_flip", "fused_net", "sync_bn"
]  # fmt: skip

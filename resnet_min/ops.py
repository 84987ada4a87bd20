"""The operators, compiled where there is a kernel and by reference elsewhere; and the choice between the two."""

from .kernels.backend import backend_line, build_info, set_backend, supported
from .kernels.bn_add_relu import bn_add_relu
from .kernels.conv3x3 import conv3x3, set_winograd
from .kernels.conv_bn_relu import conv_bn_relu, prepacked, takes_prepacked
from .kernels.crop_flip import crop_flip, make_table
from .kernels.fused_net import fused_net

__all__ = [
    "backend_line",
    "bn_add_relu",
    "build_info",
    "conv3x3",
    "conv_bn_relu",
    "crop_flip",
    "fused_net",
    "make_table",
    "prepacked",
    "set_backend",
    "set_winograd",
    "supported",
    "takes_prepacked",
]

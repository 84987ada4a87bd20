"""The reference of every operator: the same name, signature and errors as in `ops`, in PyTorch, on any device."""

from .kernels.bn_add_relu import check as check_bn_add_relu
from .kernels.bn_add_relu import check_backward as check_bn_add_relu_backward
from .kernels.bn_add_relu import reference as bn_add_relu
from .kernels.bn_add_relu import reference_backward as bn_add_relu_backward
from .kernels.conv3x3 import check as check_conv3x3
from .kernels.conv3x3 import reference as conv3x3
from .kernels.conv_bn_relu import check as check_conv_bn_relu
from .kernels.conv_bn_relu import output_shape as conv_output_shape
from .kernels.conv_bn_relu import reference as conv_bn_relu
from .kernels.crop_flip import check as check_crop_flip
from .kernels.crop_flip import reference as crop_flip
from .kernels.fused_net import check as check_fused_net
from .kernels.fused_net import reference as fused_net

__all__ = [
    "bn_add_relu",
    "bn_add_relu_backward",
    "check_bn_add_relu",
    "check_bn_add_relu_backward",
    "check_conv3x3",
    "check_conv_bn_relu",
    "check_crop_flip",
    "check_fused_net",
    "conv3x3",
    "conv_bn_relu",
    "conv_output_shape",
    "crop_flip",
    "fused_net",
]

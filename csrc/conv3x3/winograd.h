// Convolutions in Winograd's form, added in float32: conv3x3's on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

namespace resnet_min::winograd {

// All float32 or bfloat16 and channels_last, channels in multiples of 16; weight [O, C, 3, 3], padded by 1, at
// stride 1. large_tiles: in float32 it may take tiles of 4×4, as it may in bfloat16 always.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, bool large_tiles);
at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight, bool large_tiles);
at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x, bool large_tiles);

}  // namespace resnet_min::winograd

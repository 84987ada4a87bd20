// Convolutions of float32 in Winograd's form: conv3x3's on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

namespace resnet_min::winograd {

// All channels_last, channels in multiples of 16; weight [O, C, 3, 3], padded by 1, at stride 1.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight);
at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight);
at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x);

}  // namespace resnet_min::winograd

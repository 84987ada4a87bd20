// Convolutions of bfloat16 by AMX, Intel's matrix instructions: conv3x3's on a CPU that has them.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 12)
#define RESNET_MIN_HAS_AMX  // the compiler has
#endif

namespace resnet_min::amx {

// Whether this processor has AMX, the system lets this process use it, and ATEN_CPU_CAPABILITY does not forbid it.
bool available();

// All channels_last, channels in multiples of 16; weight [O, C, 3, 3], padded by 1, at stride 1 or 2.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, int64_t stride);
at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef x_sizes, int64_t stride);
at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x, int64_t stride);

}  // namespace resnet_min::amx

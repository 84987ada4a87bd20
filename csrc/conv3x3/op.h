// What conv3x3's kernels take, and its checks.
#pragma once

#include <array>

#include "check.h"

namespace resnet_min {

constexpr int64_t kConvChannels =
    16;  // the kernels take multiples of it: what fills a vector of float32, half a tile's row

inline void check_conv3x3(const at::Tensor& x, const at::Tensor& weight, int64_t stride) {
  const char* op = "conv3x3";
  const bool bf16 = x.scalar_type() == at::kBFloat16;
  const at::ScalarType dtype = bf16 ? at::kBFloat16 : at::kFloat;
  require(fits(x, dtype, {kAnySize, kAnySize, kAnySize, kAnySize}, x), op);
  require(fits(weight, dtype, {kAnySize, x.size(1), 3, 3}, x), op);
  const int64_t inputs = weight.size(1), outputs = weight.size(0);
  TORCH_CHECK_VALUE(stride == 1 || (bf16 && stride == 2), op, ": stride must be 1 (in bfloat16, or 2); got ", stride);
  TORCH_CHECK_VALUE(inputs > 0 && outputs > 0 && inputs % kConvChannels == 0 && outputs % kConvChannels == 0, op,
                    ": weight must have multiples of ", kConvChannels, " channels; got ", weight.sizes());
}

inline void check_conv3x3_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                   int64_t stride) {
  check_conv3x3(x, weight, stride);
  const auto strided = [&](int64_t extent) { return extent == 0 ? 0 : (extent - 1) / stride + 1; };
  const std::array<int64_t, 4> shape{x.size(0), weight.size(0), strided(x.size(2)), strided(x.size(3))};
  TORCH_CHECK_VALUE(fits(grad, x.scalar_type(), shape, x), "conv3x3_backward: grad must be ", x.scalar_type(), ' ',
                    at::IntArrayRef(shape), " as conv3x3's output; got ", grad.scalar_type(), ' ', grad.sizes());
}

}  // namespace resnet_min

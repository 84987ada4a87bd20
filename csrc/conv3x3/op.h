// What conv3x3's kernel takes, and its checks.
#pragma once

#include <array>

#include "check.h"

namespace resnet_min {

constexpr int64_t kChannels = 16;  // the kernels take multiples of it: what fills the widest vector

// Whether the kernels take such channels.
inline bool winograd_takes(int64_t inputs, int64_t outputs) {
  return inputs > 0 && outputs > 0 && inputs % kChannels == 0 && outputs % kChannels == 0;
}

inline void check_conv3x3(const at::Tensor& x, const at::Tensor& weight) {
  const char* op = "conv3x3";
  require(fits(x, at::kFloat, {kAnySize, kAnySize, kAnySize, kAnySize}, x), op);
  require(fits(weight, at::kFloat, {kAnySize, x.size(1), 3, 3}, x), op);
  TORCH_CHECK_VALUE(winograd_takes(x.size(1), weight.size(0)), op, ": weight must have multiples of ", kChannels,
                    " channels; got ", weight.sizes());
}

inline void check_conv3x3_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight) {
  check_conv3x3(x, weight);
  const std::array<int64_t, 4> shape{x.size(0), weight.size(0), x.size(2), x.size(3)};
  TORCH_CHECK_VALUE(fits(grad, at::kFloat, shape, x), "conv3x3_backward: grad must be float32 ", at::IntArrayRef(shape),
                    " as conv3x3's output; got ", grad.scalar_type(), ' ', grad.sizes());
}

}  // namespace resnet_min

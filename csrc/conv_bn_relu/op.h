// What the CPU and CUDA kernels of conv_bn_relu share: the output's shape, and the checks.
#pragma once

#include <ATen/core/grad_mode.h>
#include <c10/util/accumulate.h>

#include <array>
#include <optional>

#include "check.h"

namespace resnet_min {

// [B, O, H', W'] of x [B, C, H, W] and weight [O, C, h, w].
inline std::array<int64_t, 4> conv_output_shape(const at::Tensor& x, const at::Tensor& weight, int64_t stride,
                                                int64_t padding) {
  const auto size = [&](int64_t dim) { return (x.size(dim) + 2 * padding - weight.size(dim)) / stride + 1; };
  return {x.size(0), weight.size(0), size(2), size(3)};
}

inline void check_conv_bn_relu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                               const std::optional<at::Tensor>& residual, int64_t stride, int64_t padding) {
  const char* op = "conv_bn_relu";
  constexpr int64_t most = 1 << 15;
  const at::ScalarType dtype = x.scalar_type();
  require(is_any_of(dtype, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) && x.dim() == 4, op);
  require(fits(weight, dtype, {kAnySize, x.size(1), kAnySize, kAnySize}, x) && weight.numel() > 0, op);
  require(fits(bias, dtype, {weight.size(0)}, x), op);
  require(1 <= stride && stride <= most && 0 <= padding && padding <= most, op);
  require(weight.size(2) <= x.size(2) + 2 * padding && weight.size(3) <= x.size(3) + 2 * padding, op);
  const auto shape = conv_output_shape(x, weight, stride, padding);
  require(!residual || fits(*residual, dtype, shape, x), op);
  constexpr int64_t largest = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(x.numel() <= largest && c10::multiply_integers(shape) <= largest, op,
                    ": x and the output must have fewer than 2**31 elements; got ", x.sizes(), " and ",
                    at::IntArrayRef(shape));
  const bool any_requires_grad =
      x.requires_grad() || weight.requires_grad() || bias.requires_grad() || (residual && residual->requires_grad());
  TORCH_CHECK(!(at::GradMode::is_enabled() && any_requires_grad), op, ": it does not differentiate");
}

}  // namespace resnet_min

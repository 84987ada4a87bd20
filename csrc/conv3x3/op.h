// The 3×3 convolution of float32 channels_last maps at stride 1, padded by 1, in Winograd's form: conv3x3 itself, and
// what conv_bn_relu's CPU kernel uses of it.
#pragma once

#include <array>
#include <optional>

#include "check.h"

namespace resnet_min {

// ---- when Winograd's form runs ----

constexpr int64_t kSlab = 64;  // channels of the output that a product works out

// Whether the kernels take such channels.
inline bool winograd_takes(int64_t inputs, int64_t outputs) {
  return inputs > 0 && outputs > 0 && inputs % kSlab == 0 && outputs % kSlab == 0;
}

// The 2×2 tiles of a batch from which on conv_bn_relu takes this form rather than oneDNN. oneDNN's time over this
// form's, one thread of a Zen 3 core (AVX2), torch 2.14.1, least of 150 on a busy machine, maps of 4×4 and 8×8:
//   channels                                   64          128          256
//   16 tiles, both weights prepacked     2.8, 3.0     2.0, 2.3     1.0, 0.6
//   200 tiles, both weights plain        1.8, 1.7     1.6, 1.5     0.8, 1.2
//   16 tiles, both weights plain         1.1, 1.0     0.7, 0.8     0.4, 0.2
constexpr int64_t kTilesIfPrepacked = 16;
constexpr int64_t kTilesIfPlain = 200;  // the weight is transformed in the call

// Whether conv_bn_relu is faster in this form for x of these sizes. Maps of one pixel are a quarter of a tile.
inline bool winograd_pays(at::IntArrayRef x, const at::Tensor& weight, int64_t stride, int64_t padding,
                          int64_t least_tiles) {
  return weight.scalar_type() == at::kFloat && !weight.is_mkldnn() && has_shape(weight, {kAnySize, kAnySize, 3, 3}) &&
         stride == 1 && padding == 1 && winograd_takes(weight.size(1), weight.size(0)) && x[2] > 1 && x[3] > 1 &&
         x[0] * ((x[2] + 1) / 2) * ((x[3] + 1) / 2) >= least_tiles;
}

// ---- what the kernels do ----

// weight float32 [O, C, 3, 3] -> [O / 64, 4, 4, C, 64], its transform.
at::Tensor winograd_weight(const at::Tensor& weight);

// relu(conv(x) + bias + residual) from a transformed weight; x and residual channels_last, bias contiguous.
at::Tensor winograd_conv(const at::Tensor& x, const at::Tensor& transformed, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& residual, bool relu);

// ---- checks ----

inline void check_conv3x3(const at::Tensor& x, const at::Tensor& weight) {
  const char* op = "conv3x3";
  require(fits(x, at::kFloat, {kAnySize, kAnySize, kAnySize, kAnySize}, x), op);
  require(fits(weight, at::kFloat, {kAnySize, x.size(1), 3, 3}, x), op);
  TORCH_CHECK_VALUE(winograd_takes(x.size(1), weight.size(0)), op, ": weight must have multiples of ", kSlab,
                    " channels; got ", weight.sizes());
}

inline void check_conv3x3_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight) {
  check_conv3x3(x, weight);
  const std::array<int64_t, 4> shape{x.size(0), weight.size(0), x.size(2), x.size(3)};
  TORCH_CHECK_VALUE(fits(grad, at::kFloat, shape, x), "conv3x3_backward: grad must be float32 ", at::IntArrayRef(shape),
                    " as conv3x3's output; got ", grad.scalar_type(), ' ', grad.sizes());
}

}  // namespace resnet_min

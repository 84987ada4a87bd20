// Argument checks, and the arithmetic that CPU and CUDA kernels share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/macros/Macros.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace resnet_min {

// ---- checks: every message says what was wanted and what was got ----

constexpr int64_t kAnySize = -1;

inline bool has_shape(const at::Tensor& tensor, at::IntArrayRef shape) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != kAnySize && tensor.size(static_cast<int64_t>(i)) != shape[i]) return false;
  }
  return true;
}

inline bool is_any_of(at::ScalarType dtype, at::ArrayRef<at::ScalarType> wanted) {
  return std::find(wanted.begin(), wanted.end(), dtype) != wanted.end();
}

// As Python prints them: "int64 [4, 2]".
inline std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << c10::getDtypeNames(tensor.scalar_type()).first << ' ' << tensor.sizes();
  return text.str();
}

// `wanted` is the sentence's object, as in "crop_flip: index must be int64 [B]; got int32 [4]".
inline void check_argument(bool ok, const char* op, const char* name, const std::string& wanted,
                           const at::Tensor& got) {
  TORCH_CHECK_VALUE(ok, op, ": ", name, " must be ", wanted, "; got ", describe(got));
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& got, const at::Tensor& images) {
  TORCH_CHECK_VALUE(got.device() == images.device(), op, ": ", name, " must be on ", images.device(), "; got ",
                    got.device());
}

// ---- crop_flip ----

// Positions [begin, end) of an output row (or column) of `size` pixels come from the image, at `first + step *
// position`; the others are padding.
struct Span {
  int begin, end, first, step;
};

// `shift` is the crop's offset less the padding: where its first pixel lies in the image.
C10_HOST_DEVICE inline Span source_span(int shift, int size, bool flip) {
  const int padded = flip ? shift : -shift;
  const int begin = padded < 0 ? 0 : padded > size ? size : padded;
  const int end = size + padded < begin ? begin : size + padded > size ? size : size + padded;
  return flip ? Span{begin, end, shift + size - 1, -1} : Span{begin, end, shift, 1};
}

// The pixels of a row are adjacent; rows and images may lie anywhere. Memory-mapped and sliced data need no copy.
inline bool has_contiguous_pixels(const at::Tensor& images) {
  return images.numel() == 0 || (images.stride(3) == 1 && (images.size(2) == 1 || images.stride(2) == 3));
}

inline void check_crop_flip(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset,
                            const at::Tensor& flip, const at::Tensor& table, int64_t padding) {
  const char* op = "crop_flip";
  check_argument(images.scalar_type() == at::kByte && has_shape(images, {kAnySize, kAnySize, kAnySize, 3}), op,
                 "images", "uint8 [N, H, W, 3]", images);
  check_argument(index.scalar_type() == at::kLong && index.dim() == 1, op, "index", "int64 [B]", index);
  const std::string batch = std::to_string(index.size(0));
  check_argument(offset.scalar_type() == at::kLong && has_shape(offset, {index.size(0), 2}), op, "offset",
                 "int64 [" + batch + ", 2]", offset);
  check_argument(flip.scalar_type() == at::kBool && has_shape(flip, {index.size(0)}), op, "flip",
                 "bool [" + batch + "]", flip);
  check_argument(
      is_any_of(table.scalar_type(), {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) && has_shape(table, {3, 256}),
      op, "table", "float32, bfloat16, float16 or float64 [3, 256]", table);
  TORCH_CHECK_VALUE(0 <= padding && padding <= (1 << 24), op, ": padding must be 0 to 2**24; got ", padding);
  check_same_device(op, "index", index, images);
  check_same_device(op, "offset", offset, images);
  check_same_device(op, "flip", flip, images);
  check_same_device(op, "table", table, images);
  TORCH_CHECK_VALUE(has_contiguous_pixels(images), op, ": images must have strides [any, any, 3, 1]; got ",
                    images.strides());
  // Positions inside one image are ints.
  constexpr int64_t largest = std::numeric_limits<int32_t>::max() / 8;
  TORCH_CHECK_VALUE(images.size(1) < largest && images.size(2) < largest && images.size(1) * images.size(2) < largest,
                    op, ": an image must have fewer than 2**28 pixels; got ", images.sizes());
}

// ---- conv_bn_relu ----

// [B, O, H', W'] of x [B, C, H, W] and weight [O, C, h, w].
inline std::array<int64_t, 4> conv_output_shape(const at::Tensor& x, const at::Tensor& weight, int64_t stride,
                                                int64_t padding) {
  const auto size = [&](int64_t dim) { return (x.size(dim) + 2 * padding - weight.size(dim)) / stride + 1; };
  return {x.size(0), weight.size(0), size(2), size(3)};
}

inline void check_conv_bn_relu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                               const std::optional<at::Tensor>& residual, int64_t stride, int64_t padding) {
  const char* op = "conv_bn_relu";
  const at::ScalarType dtype = x.scalar_type();
  check_argument(is_any_of(dtype, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) && x.dim() == 4, op, "x",
                 "float32, bfloat16, float16 or float64 [B, C, H, W]", x);
  const std::string in_dtype = std::string(c10::getDtypeNames(dtype).first) + " [";
  check_argument(weight.scalar_type() == dtype && has_shape(weight, {kAnySize, x.size(1), kAnySize, kAnySize}), op,
                 "weight", in_dtype + "O, " + std::to_string(x.size(1)) + ", h, w]", weight);
  TORCH_CHECK_VALUE(weight.numel() > 0, op, ": weight must have no empty dimension; got ", weight.sizes());
  check_argument(bias.scalar_type() == dtype && has_shape(bias, {weight.size(0)}), op, "bias",
                 in_dtype + std::to_string(weight.size(0)) + "]", bias);
  TORCH_CHECK_VALUE(1 <= stride && stride <= (1 << 15), op, ": stride must be 1 to 2**15; got ", stride);
  TORCH_CHECK_VALUE(0 <= padding && padding <= (1 << 15), op, ": padding must be 0 to 2**15; got ", padding);
  TORCH_CHECK_VALUE(weight.size(2) <= x.size(2) + 2 * padding && weight.size(3) <= x.size(3) + 2 * padding, op,
                    ": weight must fit into x and its padding of ", padding, "; got weight ", weight.sizes(), " and x ",
                    x.sizes());
  const auto shape = conv_output_shape(x, weight, stride, padding);
  if (residual) {
    std::ostringstream wanted;
    wanted << c10::getDtypeNames(dtype).first << ' ' << at::IntArrayRef(shape);
    check_argument(residual->scalar_type() == dtype && has_shape(*residual, shape), op, "residual", wanted.str(),
                   *residual);
  }
  check_same_device(op, "weight", weight, x);
  check_same_device(op, "bias", bias, x);
  if (residual) check_same_device(op, "residual", *residual, x);
  constexpr int64_t largest = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(x.numel() <= largest && c10::multiply_integers(shape) <= largest, op,
                    ": x and the output must have fewer than 2**31 elements; got ", x.sizes(), " and ",
                    at::IntArrayRef(shape));
  const bool any_requires_grad =
      x.requires_grad() || weight.requires_grad() || bias.requires_grad() || (residual && residual->requires_grad());
  TORCH_CHECK(!(at::GradMode::is_enabled() && any_requires_grad), op,
              ": it is for inference, inputs must not require grad; use torch.no_grad()");
}

}  // namespace resnet_min

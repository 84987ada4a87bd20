// What the CPU and CUDA kernels of crop_flip share: where a crop's pixels come from, and the checks.
#pragma once

#include "check.h"
#include "crop_flip/geometry.h"

namespace resnet_min {

// The pixels of a row are adjacent; rows and images may lie anywhere. Memory-mapped and sliced data need no copy.
inline bool has_contiguous_pixels(const at::Tensor& images) {
  return images.numel() == 0 || (images.stride(3) == 1 && (images.size(2) == 1 || images.stride(2) == 3));
}

inline void check_crop_flip(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset,
                            const at::Tensor& flip, const at::Tensor& table, int64_t padding) {
  const char* op = "crop_flip";
  require(fits(images, at::kByte, {kAnySize, kAnySize, kAnySize, 3}, images), op);
  require(fits(index, at::kLong, {kAnySize}, images), op);
  require(fits(offset, at::kLong, {index.size(0), 2}, images) && fits(flip, at::kBool, {index.size(0)}, images), op);
  require(is_any_of(table.scalar_type(), {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}), op);
  require(fits(table, table.scalar_type(), {3, 256}, images) && 0 <= padding && padding <= (1 << 24), op);
  TORCH_CHECK_VALUE(has_contiguous_pixels(images), op, ": images must have strides [any, any, 3, 1]; got ",
                    images.strides());
  // Positions inside one image are ints.
  constexpr int64_t largest = std::numeric_limits<int32_t>::max() / 8;
  TORCH_CHECK_VALUE(images.size(1) < largest && images.size(2) < largest && images.size(1) * images.size(2) < largest,
                    op, ": an image must have fewer than 2**28 pixels; got ", images.sizes());
}

}  // namespace resnet_min

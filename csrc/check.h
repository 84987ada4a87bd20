// What the operators ask of their arguments.
//
// A check is worded once, in resnet_min/kernels/NAME.py, which is asked for its words where a kernel refuses. Here are
// the same conditions without words, as far as a kernel's reads, writes and dtypes depend on them; an op.h has words
// for what its kernels alone ask.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace resnet_min {

constexpr int64_t kAnySize = -1;

inline void require(bool ok, const char* op) {
  TORCH_CHECK_VALUE(ok, op, ": the kernel does not take these arguments; resnet_min.reference.", op,
                    " does, or says what is wrong with them");
}

inline bool is_any_of(at::ScalarType dtype, at::ArrayRef<at::ScalarType> wanted) {
  return std::find(wanted.begin(), wanted.end(), dtype) != wanted.end();
}

inline bool has_shape(const at::Tensor& tensor, at::IntArrayRef shape) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != kAnySize && tensor.size(static_cast<int64_t>(i)) != shape[i]) return false;
  }
  return true;
}

// Of this dtype and shape, and on x's device.
inline bool fits(const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef shape, const at::Tensor& x) {
  return tensor.scalar_type() == dtype && has_shape(tensor, shape) && tensor.device() == x.device();
}

}  // namespace resnet_min

// What the CPU and CUDA kernels of bn_add_relu share: the arithmetic on one channel's figures, and the checks.
#pragma once

#include <cmath>
#include <optional>

#include "bn_add_relu/arithmetic.h"
#include "check.h"

namespace resnet_min {

inline bool is_channels_last(const at::Tensor& tensor) { return tensor.is_contiguous(at::MemoryFormat::ChannelsLast); }

inline at::Tensor as_channels_last(const at::Tensor& tensor) {
  return tensor.contiguous(at::MemoryFormat::ChannelsLast);
}

// Figures of a channel are float32, or float64 beside float64.
inline at::ScalarType parameter_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_x(const char* op, const at::Tensor& x, at::ArrayRef<at::ScalarType> dtypes) {
  require(is_any_of(x.scalar_type(), dtypes) && x.dim() == 4 && x.size(1) > 0 && x.numel() > x.size(1), op);
  TORCH_CHECK_VALUE(is_channels_last(x), op, ": x must be channels_last; got strides ", x.strides());
}

inline bool is_like(const at::Tensor& tensor, const at::Tensor& x) {
  return fits(tensor, x.scalar_type(), x.sizes(), x);
}

inline bool has_figures(const at::Tensor& tensor, const at::Tensor& x) {
  return fits(tensor, parameter_dtype(x), x.sizes()[1], x);
}

inline void check_bn_add_relu(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
                              const std::optional<at::Tensor>& residual, double eps,
                              at::ArrayRef<at::ScalarType> dtypes) {
  const char* op = "bn_add_relu";
  check_x(op, x, dtypes);
  require(has_figures(gamma, x) && has_figures(beta, x) && (!residual || is_like(*residual, x)), op);
  require(eps >= 0 && std::isfinite(eps), op);
}

inline void check_bn_add_relu_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma,
                                       const at::Tensor& beta, const at::Tensor& mean, const at::Tensor& invstd,
                                       const std::optional<at::Tensor>& out, bool relu,
                                       at::ArrayRef<at::ScalarType> dtypes) {
  const char* op = "bn_add_relu_backward";
  check_x(op, x, dtypes);
  require(is_like(grad, x) && has_figures(gamma, x) && has_figures(beta, x), op);
  require(has_figures(mean, x) && has_figures(invstd, x), op);
  require(!out || (relu && is_like(*out, x)), op);
}

}  // namespace resnet_min

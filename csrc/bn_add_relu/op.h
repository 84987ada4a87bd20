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

inline void check_maps(const char* op, const at::Tensor& x, at::ArrayRef<at::ScalarType> dtypes) {
  require(is_any_of(x.scalar_type(), dtypes) && x.dim() == 4 && x.size(1) > 0, op);
  TORCH_CHECK_VALUE(is_channels_last(x), op, ": x must be channels_last; got strides ", x.strides());
}

inline void check_x(const char* op, const at::Tensor& x, at::ArrayRef<at::ScalarType> dtypes) {
  check_maps(op, x, dtypes);
  require(x.numel() > x.size(1), op);
}

inline bool is_like(const at::Tensor& tensor, const at::Tensor& x) {
  return fits(tensor, x.scalar_type(), x.sizes(), x);
}

// One figure each of every channel.
inline void check_channels(const char* op, const at::Tensor& x, std::initializer_list<at::Tensor> figures) {
  for (const at::Tensor& tensor : figures) require(fits(tensor, parameter_dtype(x), x.sizes()[1], x), op);
}

// A batch norm's running statistics, which forward updates: all of the tensors or none.
struct Running {
  const std::optional<at::Tensor>&mean, &var, &batches;
  double momentum;

  explicit operator bool() const { return mean.has_value(); }
};

inline void check_running(const char* op, const at::Tensor& x, const Running& running) {
  const bool given = static_cast<bool>(running);
  require(running.var.has_value() == given && running.batches.has_value() == given, op);
  if (!given) return;
  check_channels(op, x, {*running.mean, *running.var});
  require(fits(*running.batches, at::kLong, {}, x), op);
  require(running.mean->is_contiguous() && running.var->is_contiguous(), op);
}

inline void check_bn_add_relu(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
                              const std::optional<at::Tensor>& residual, double eps, const Running& running,
                              at::ArrayRef<at::ScalarType> dtypes) {
  const char* op = "bn_add_relu";
  check_x(op, x, dtypes);
  check_channels(op, x, {gamma, beta});
  require(!residual || is_like(*residual, x), op);
  require(eps >= 0 && std::isfinite(eps), op);
  check_running(op, x, running);
}

inline void check_bn_add_relu_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma,
                                       const at::Tensor& beta, const at::Tensor& mean, const at::Tensor& invstd,
                                       const std::optional<at::Tensor>& out, bool relu,
                                       at::ArrayRef<at::ScalarType> dtypes) {
  const char* op = "bn_add_relu_backward";
  check_x(op, x, dtypes);
  check_channels(op, x, {gamma, beta, mean, invstd});
  require(is_like(grad, x) && (!out || (relu && is_like(*out, x))), op);
}

}  // namespace resnet_min

// What the CPU and CUDA kernels of bn_add_relu share: the arithmetic on one channel's figures, and the checks.
#pragma once

#include <c10/macros/Macros.h>

#include <cmath>
#include <optional>

#include "check.h"

namespace resnet_min {

// ---- arithmetic, one channel at a time ----

// Of `count` values: their mean, and the sum of their squared distances from it.
template <typename T>
struct Moments {
  T count, mean, distances;

  // Adds a second set (Chan, Golub & LeVeque 1979): every term is positive, so nothing cancels.
  C10_HOST_DEVICE void operator+=(const Moments& other) {
    if (other.count == 0) return;
    const T total = count + other.count, share = other.count / total, delta = other.mean - mean;
    distances += other.distances + delta * delta * count * share;
    mean += delta * share;
    count = total;
  }
};

template <typename T>
struct Normalisation {
  T scale, shift;

  C10_HOST_DEVICE T of(T x) const { return std::fma(x, scale, shift); }
};

// From the rounded mean and invstd that backward has too, so that its ReLU mask is forward's. The product with the
// mean, which cancels against x's, is not rounded on its own.
template <typename T>
C10_HOST_DEVICE inline Normalisation<T> normalisation(T gamma, T beta, T mean, T invstd) {
  const T scale = gamma * invstd;
  return {scale, std::fma(-mean, scale, beta)};
}

// Of x, from the gradient of the normalised x.
template <typename T>
struct InputGradient {
  T of_grad, of_x, constant;

  C10_HOST_DEVICE T of(T grad, T x) const { return std::fma(grad, of_grad, std::fma(x, of_x, constant)); }
};

// mean_grad, mean_product: over the channel, of grad and of grad * (x - mean) * invstd. S: the type they were summed
// in.
template <typename T, typename S>
C10_HOST_DEVICE inline InputGradient<T> input_gradient(T gamma, T mean, T invstd, S mean_grad, S mean_product) {
  const S scale = static_cast<S>(gamma) * invstd;
  const T of_x = static_cast<T>(-scale * invstd * mean_product);
  return {static_cast<T>(scale), of_x,
          static_cast<T>(std::fma(-static_cast<S>(of_x), static_cast<S>(mean), -scale * mean_grad))};
}

// ReLU's gradient: v where `by` is above 0 or NaN, otherwise 0.
template <typename T>
C10_HOST_DEVICE inline T masked(T v, T by) {
  return by <= 0 ? 0 : v;
}

// ---- checks ----

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

// What the CPU and CUDA kernels of bn_add_relu share: the checks, and the arithmetic on one channel's figures.
#pragma once

#include <cmath>
#include <optional>

#include "common.h"

namespace resnet_min {

// ---- arithmetic, one channel at a time ----

// Of `count` values: their mean, and the sum of their squared distances from it.
template <typename T>
struct Moments {
  T count, mean, distances;

  // Adds a second set (Chan, Golub & LeVeque 1979): every term is positive, so nothing cancels.
  C10_HOST_DEVICE void operator+=(const Moments& other) {
    if (other.count == 0) return;
    const T total = count + other.count, share = other.count / total, apart = other.mean - mean;
    distances += other.distances + apart * apart * count * share;
    mean += apart * share;
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

inline std::string shape_text(at::ScalarType dtype, at::IntArrayRef shape) {
  std::ostringstream text;
  text << c10::getDtypeNames(dtype).first << ' ' << shape;
  return text.str();
}

inline void check_like(const char* op, const char* name, const at::Tensor& got, at::ScalarType dtype,
                       at::IntArrayRef shape, const at::Tensor& x) {
  check_argument(got.scalar_type() == dtype && got.sizes() == shape, op, name, shape_text(dtype, shape), got);
  TORCH_CHECK_VALUE(got.device() == x.device(), op, ": ", name, " must be on ", x.device(), "; got ", got.device());
}

inline void check_x(const char* op, const at::Tensor& x, at::ArrayRef<at::ScalarType> dtypes) {
  std::string wanted;
  for (size_t i = 0; i < dtypes.size(); ++i) {
    wanted += i == 0 ? "" : i + 1 < dtypes.size() ? ", " : " or ";
    wanted += c10::getDtypeNames(dtypes[i]).first;
  }
  check_argument(is_any_of(x.scalar_type(), dtypes) && x.dim() == 4, op, "x", wanted + " [B, C, H, W]", x);
  const int64_t values = x.size(0) * x.size(2) * x.size(3);
  TORCH_CHECK_VALUE(values > 1 && x.size(1) > 0, op, ": x must have channels, and more than 1 value per channel; got ",
                    describe(x));
  TORCH_CHECK_VALUE(is_channels_last(x), op, ": x must be channels_last; got strides ", x.strides());
}

inline void check_bn_add_relu(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
                              const std::optional<at::Tensor>& residual, double eps,
                              at::ArrayRef<at::ScalarType> dtypes) {
  const char* op = "bn_add_relu";
  check_x(op, x, dtypes);
  check_like(op, "gamma", gamma, parameter_dtype(x), x.sizes()[1], x);
  check_like(op, "beta", beta, parameter_dtype(x), x.sizes()[1], x);
  if (residual) check_like(op, "residual", *residual, x.scalar_type(), x.sizes(), x);
  TORCH_CHECK_VALUE(eps >= 0 && std::isfinite(eps), op, ": eps must be finite and at least 0; got ", eps);
}

inline void check_bn_add_relu_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma,
                                       const at::Tensor& beta, const at::Tensor& mean, const at::Tensor& invstd,
                                       const std::optional<at::Tensor>& out, bool relu,
                                       at::ArrayRef<at::ScalarType> dtypes) {
  const char* op = "bn_add_relu_backward";
  check_x(op, x, dtypes);
  check_like(op, "grad", grad, x.scalar_type(), x.sizes(), x);
  check_like(op, "gamma", gamma, parameter_dtype(x), x.sizes()[1], x);
  check_like(op, "beta", beta, parameter_dtype(x), x.sizes()[1], x);
  check_like(op, "mean", mean, parameter_dtype(x), x.sizes()[1], x);
  check_like(op, "invstd", invstd, parameter_dtype(x), x.sizes()[1], x);
  if (out) check_like(op, "out", *out, x.scalar_type(), x.sizes(), x);
  TORCH_CHECK_VALUE(relu || !out, op, ": out must be None without relu; got ", describe(*out));
}

}  // namespace resnet_min

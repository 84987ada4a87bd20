// What the CPU and CUDA kernels of bn_add_relu compute with one channel's figures, and nothing of torch's.
#pragma once

#include <c10/macros/Macros.h>

#include <cmath>

namespace resnet_min {

// Of `count` values: their mean, and the sum of their squared distances from it.
template <typename T>
struct Moments {
  T count, mean, distances;

  // Adds a second set (Chan, Golub & LeVeque 1979): every term is positive, so nothing cancels.
  C10_HOST_DEVICE void operator+=(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {  // and no product of 0 with a square that overflows
      *this = other;
      return;
    }
    const T total = count + other.count, share = other.count / total, delta = other.mean - mean;
    distances += other.distances + delta * delta * count * share;
    mean += delta * share;
    count = total;
  }
};

// A running statistic after a batch whose own is `batch`, as torch's batch norm has it.
template <typename T>
C10_HOST_DEVICE inline T moved(T running, T batch, T momentum) {
  return (1 - momentum) * running + momentum * batch;
}

// Of a variance, with eps. As in torch, 0 where it is 0: a constant channel becomes its beta.
template <typename T>
C10_HOST_DEVICE inline T inverse_std(T variance) {
  return variance == 0 ? T(0) : 1 / std::sqrt(variance);
}

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

}  // namespace resnet_min

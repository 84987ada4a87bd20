// What cuda_host.cpp asks of cuda.cu. Of torch there is no more here than its two dtypes, so that nvcc, which parses a
// source four times, is quick.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "conv_bn_relu/cuda_tiles.h"

namespace resnet_min {

// Dense NHWC, [O, h, w, C] the weight, each from 16 bytes on; `residual` is null where there is none, and `sums`
// [splits, out's size] where the plan has no splits. T: c10::BFloat16, c10::Half.
template <typename T>
struct Convolution {
  const T *x, *weight, *bias, *residual;
  bool relu;
  T* out;
  float* sums;
  ConvShape shape;
  ConvPlan plan;
};

template <typename T>
cudaError_t launch_convolution(const Convolution<T>& call, cudaStream_t stream);

// out = relu(out + bias + residual), [outputs / channels, channels]. T: float, double.
template <typename T>
cudaError_t launch_finish(const T* bias, const T* residual, bool relu, T* out, int64_t outputs, int channels,
                          cudaStream_t stream);

}  // namespace resnet_min

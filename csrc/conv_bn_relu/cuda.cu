// The kernels of conv_bn_relu and their launches; cuda_host.cpp has what comes before. In a namespace without a name,
// kernels would have another name in each compilation, and tests/ptx reads two.
#include "conv_bn_relu/cuda_kernel.h"
#include "conv_bn_relu/cuda_launch.h"

namespace resnet_min {

template <typename T, typename Tile>
__global__ void __launch_bounds__(kConvThreads, Tile::kBlocksPerSm)
    convolve_kernel(const T* x, const T* weight, const T* bias, const T* residual, bool relu, T* out, float* sums,
                    const __grid_constant__ ConvShape shape, int stages_per_split) {
  extern __shared__ __align__(128) unsigned char shared[];
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  convolve<T, Tile>(x, weight, bias, residual, relu, out, sums, shape, stages_per_split, shared_address(shared));
#else
  CUDA_KERNEL_ASSERT(false && "conv_bn_relu: compute capability 8.0 or later");
#endif
}

template <typename T, typename Sum, int size>
__global__ void __launch_bounds__(kConvThreads)
    finish_sums_kernel(const Sum* sums, int splits, const T* bias, const T* residual, bool relu, T* out,
                       int64_t outputs, int channels) {
  finish_sums<T, Sum, size>(sums, splits, bias, residual, relu, out, outputs, channels);
}

namespace {

template <typename T, typename Sum, int size>
cudaError_t finish_sums_on(cudaStream_t stream, const Sum* sums, int splits, const T* bias, const T* residual,
                           bool relu, T* out, int64_t outputs, int channels) {
  const int64_t blocks = (outputs + kConvThreads * size - 1) / (kConvThreads * size);
  finish_sums_kernel<T, Sum, size><<<static_cast<unsigned>(blocks), kConvThreads, 0, stream>>>(
      sums, splits, bias, residual, relu, out, outputs, channels);
  return cudaGetLastError();
}

template <typename T, typename Tile>
cudaError_t convolve_on(cudaStream_t stream, const Convolution<T>& call) {
  const ConvShape& shape = call.shape;
  const ConvPlan& plan = call.plan;
  const auto kernel = convolve_kernel<T, Tile>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>(count_tiles<Tile>(shape) * plan.splits);
  kernel<<<blocks, kConvThreads, Tile::kSharedBytes, stream>>>(call.x, call.weight, call.bias, call.residual, call.relu,
                                                               call.out, call.sums, shape, plan.stages_per_split);
  error = cudaGetLastError();
  if (error != cudaSuccess || plan.splits == 1) return error;
  const int64_t outputs = static_cast<int64_t>(shape.pixels) * shape.out_channels;
  return finish_sums_on<T, float, 8>(stream, call.sums, plan.splits, call.bias, call.residual, call.relu, call.out,
                                     outputs, shape.out_channels);
}

}  // namespace

template <typename T>
cudaError_t launch_convolution(const Convolution<T>& call, cudaStream_t stream) {
  const auto run = call.plan.tile == TileKind::kWide   ? convolve_on<T, WideTile>
                   : call.plan.tile == TileKind::kTall ? convolve_on<T, TallTile>
                                                       : convolve_on<T, NarrowTile>;
  return run(stream, call);
}

template cudaError_t launch_convolution(const Convolution<c10::BFloat16>&, cudaStream_t);
template cudaError_t launch_convolution(const Convolution<c10::Half>&, cudaStream_t);

template <typename T>
cudaError_t launch_finish(const T* bias, const T* residual, bool relu, T* out, int64_t outputs, int channels,
                          cudaStream_t stream) {
  constexpr int kSize = 16 / sizeof(T);
  const auto run = channels % kSize == 0 ? finish_sums_on<T, T, kSize> : finish_sums_on<T, T, 1>;
  return run(stream, out, 1, bias, residual, relu, out, outputs, channels);
}

template cudaError_t launch_finish(const float*, const float*, bool, float*, int64_t, int, cudaStream_t);
template cudaError_t launch_finish(const double*, const double*, bool, double*, int64_t, int, cudaStream_t);

}  // namespace resnet_min

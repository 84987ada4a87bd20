// A convolution that adds bias and residual and applies ReLU to its sums while they are in registers. In bfloat16 and
// float16 the arithmetic is ours, on tensor cores; in float32 and float64 it is the library's, and one pass follows.
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "conv_bn_relu/cuda_launch.h"
#include "conv_bn_relu/op.h"

namespace resnet_min {
namespace {

// All tensors below are dense NHWC, [O, h, w, C] the weight.
template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
at::Tensor convolve_on_tensor_cores(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& residual, int64_t stride, int64_t padding, bool relu,
                                    const std::array<int64_t, 4>& shape) {
  int device, multiprocessors, major;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  TORCH_CHECK_NOT_IMPLEMENTED(major >= 8, "conv_bn_relu: ", x.scalar_type(),
                              " on CUDA needs compute capability 8.0 or later; got ", major, ".x");
  const at::Tensor out = at::empty({shape[0], shape[2], shape[3], weight.size(0)}, x.options());
  constexpr int64_t largest = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(x.numel() <= largest && weight.numel() <= largest && out.numel() <= largest,
                    "conv_bn_relu: x, weight and the output must have fewer than 2**31 elements with their channels",
                    " padded to multiples of 8; got NHWC ", x.sizes(), ", ", weight.sizes(), " and ", out.sizes());
  const auto size = [](const at::Tensor& tensor, int dim) { return static_cast<int>(tensor.size(dim)); };
  ConvShape conv = {};
  conv.height = size(x, 1), conv.width = size(x, 2), conv.channels = size(x, 3);
  conv.kernel_height = size(weight, 1), conv.kernel_width = size(weight, 2);
  conv.stride = static_cast<int>(stride), conv.padding = static_cast<int>(padding);
  conv.out_height = size(out, 1), conv.out_width = size(out, 2), conv.out_channels = size(out, 3);
  conv.pixels = static_cast<int>(out.numel() / out.size(3));
  conv = complete(conv);
  const ConvPlan plan = plan_conv(conv, multiprocessors);
  at::Tensor sums;
  if (plan.splits > 1) sums = at::empty({plan.splits, out.numel()}, out.options().dtype(at::kFloat));
  const Convolution<T> call{x.const_data_ptr<T>(),
                            weight.const_data_ptr<T>(),
                            bias.const_data_ptr<T>(),
                            data_or_null<T>(residual),
                            relu,
                            out.mutable_data_ptr<T>(),
                            sums.defined() ? sums.mutable_data_ptr<float>() : nullptr,
                            conv,
                            plan};
  C10_CUDA_CHECK(launch_convolution(call, c10::cuda::getCurrentCUDAStream()));
  return out;
}

template <typename T>
at::Tensor finish_library_sums(const at::Tensor& sums, const at::Tensor& bias, const at::Tensor& residual, bool relu) {
  C10_CUDA_CHECK(launch_finish(bias.const_data_ptr<T>(), data_or_null<T>(residual), relu, sums.mutable_data_ptr<T>(),
                               sums.numel(), static_cast<int>(sums.size(3)), c10::cuda::getCurrentCUDAStream()));
  return sums;
}

// Dense, and where 16-byte accesses may begin. `pads`: zeros to add at the ends of dimensions, the last one first.
at::Tensor ready(const at::Tensor& tensor, at::IntArrayRef pads = {}) {
  const bool any = std::any_of(pads.begin(), pads.end(), [](int64_t pad) { return pad > 0; });
  const at::Tensor dense = (any ? at::constant_pad_nd(tensor, pads) : tensor).contiguous();
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone();
}

at::Tensor nhwc(const at::Tensor& tensor) { return tensor.permute({0, 2, 3, 1}); }

at::Tensor conv_bn_relu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const std::optional<at::Tensor>& residual, int64_t stride, int64_t padding, bool relu) {
  check_conv_bn_relu(x, weight, bias, residual, stride, padding);
  const c10::cuda::CUDAGuard guard(x.device());
  // An autocast around us would have the library compute in another dtype.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto shape = conv_output_shape(x, weight, stride, padding);
  at::Tensor out;
  if (x.size(0) == 0) {
    out = at::empty({shape[0], shape[2], shape[3], shape[1]}, x.options());
  } else if (is_any_of(x.scalar_type(), {at::kBFloat16, at::kHalf})) {
    // Channels to multiples of 8, 16 bytes: of a network, this pads the 3 of its images.
    const int64_t in = (kChunk - x.size(1) % kChunk) % kChunk, more = (kChunk - shape[1] % kChunk) % kChunk;
    const auto run =
        x.scalar_type() == at::kHalf ? convolve_on_tensor_cores<c10::Half> : convolve_on_tensor_cores<c10::BFloat16>;
    out = run(ready(nhwc(x), {0, in}), ready(nhwc(weight), {0, in, 0, 0, 0, 0, 0, more}), ready(bias, {0, more}),
              residual ? ready(nhwc(*residual), {0, more}) : at::Tensor(), stride, padding, relu, shape);
    if (more) out = out.narrow(3, 0, shape[1]).contiguous();
  } else {
    const at::Tensor sums =
        at::conv2d(x.contiguous(at::MemoryFormat::ChannelsLast), weight, std::nullopt, stride, padding);
    const auto run = x.scalar_type() == at::kFloat ? finish_library_sums<float> : finish_library_sums<double>;
    out = run(ready(nhwc(sums)), ready(bias), residual ? ready(nhwc(*residual)) : at::Tensor(), relu);
  }
  return out.permute({0, 3, 1, 2});  // channels_last
}

}  // namespace

TORCH_LIBRARY_IMPL(resnet_min, CUDA, m) { m.impl("conv_bn_relu", &conv_bn_relu); }

}  // namespace resnet_min

// The operators on a CPU: in Winograd's form; bfloat16 by AMX, where that is there.
#include <ATen/autocast_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "conv3x3/amx.h"
#include "conv3x3/op.h"
#include "conv3x3/winograd.h"

namespace resnet_min {
namespace {

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

// Whether it is for AMX; raises where it would be, and that is not there.
bool by_amx(const at::Tensor& x, int64_t stride) {
  if (x.scalar_type() != at::kBFloat16) return false;
  TORCH_CHECK_VALUE(stride == 1 || amx::available(), "conv3x3: stride 2 takes a processor with AMX");
  return amx::available();
}

// oneDNN's products by AMX are as good as ours for large maps, and where nothing is strided about: it has those. Not
// maps of one column: where it strides, oneDNN (3.12, of torch 2.14) reads beyond them.
constexpr int64_t kSmall = 64;  // pixels

at::Tensor bf16_convolution(const at::Tensor& x, const at::Tensor& weight, int64_t stride) {
  const int64_t height = (x.size(2) + stride - 1) / stride, width = (x.size(3) + stride - 1) / stride;
  if (height * width <= kSmall || width == 1) return amx::convolution(x, weight, stride);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return at::conv2d(x, weight, {}, stride, 1).contiguous(kLayout);
}

at::Tensor bf16_input_gradient(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, int64_t stride) {
  if (stride > 1 || x.size(2) * x.size(3) <= kSmall) return amx::input_gradient(grad, weight, x.sizes(), stride);
  const auto [grad_x, _, __] =
      at::convolution_backward(grad, x, weight, std::nullopt, stride, 1, 1, false, 0, 1, {true, false, false});
  return grad_x.contiguous(kLayout);
}

at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weight, int64_t stride, bool large_tiles) {
  check_conv3x3(x, weight, stride);
  const at::Tensor maps = x.contiguous(kLayout);
  if (!by_amx(x, stride)) return winograd::convolution(maps, weight, large_tiles);
  return bf16_convolution(maps, weight.contiguous(kLayout), stride);
}

std::tuple<at::Tensor, at::Tensor> conv3x3_backward(const at::Tensor& grad, const at::Tensor& x,
                                                    const at::Tensor& weight, int64_t stride, bool large_tiles,
                                                    bool for_x, bool for_weight) {
  check_conv3x3_backward(grad, x, weight, stride);
  const bool has_amx = by_amx(x, stride);
  const at::Tensor of_output = grad.contiguous(kLayout), maps = x.contiguous(kLayout);
  at::Tensor grad_x = at::empty({0}, x.options()), grad_weight = at::empty({0}, x.options());
  if (for_x) {
    grad_x = has_amx ? bf16_input_gradient(of_output, maps, weight.contiguous(kLayout), stride)
                     : winograd::input_gradient(of_output, weight, large_tiles);
  }
  if (for_weight) {
    grad_weight = has_amx ? amx::weight_gradient(of_output, maps, stride)
                          : winograd::weight_gradient(of_output, maps, large_tiles);
  }
  return {grad_x, grad_weight};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def("conv3x3(Tensor x, Tensor weight, int stride, bool large_tiles) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "conv3x3_backward(Tensor grad, Tensor x, Tensor weight, int stride, bool large_tiles, bool for_x, "
      "bool for_weight) -> (Tensor "
      "grad_x, Tensor grad_weight)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) {
  m.impl("conv3x3", &conv3x3);
  m.impl("conv3x3_backward", &conv3x3_backward);
}

}  // namespace resnet_min

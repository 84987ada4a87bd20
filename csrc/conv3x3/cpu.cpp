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
#include "vector.h"

namespace resnet_min {
namespace {

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

// Whose kernels work it out.
enum class By { kWinograd, kAmx, kOneDnn };

// Of bfloat16, oneDNN's products by AMX are as good as ours for large maps, and where nothing is strided about; without
// AMX, its products by bfloat16's other instructions are better than Winograd's on the smallest maps, where half of a
// tile is padding. Not maps of one column: where it strides, oneDNN (3.12, of torch 2.14) reads beyond them.
By forward_by(const at::Tensor& x, int64_t stride) {
  if (x.scalar_type() != at::kBFloat16) return By::kWinograd;
  const int64_t height = (x.size(2) + stride - 1) / stride, width = (x.size(3) + stride - 1) / stride;
  if (amx::available()) return height * width <= 64 || width == 1 ? By::kAmx : By::kOneDnn;
  TORCH_CHECK_VALUE(stride == 1, "conv3x3: stride 2 takes a processor with AMX");
  const bool has_bf16 = instruction_set() == InstructionSet::kAvx512Bf16;
  return has_bf16 && height * width <= 4 ? By::kOneDnn : By::kWinograd;
}

By input_gradient_by(const at::Tensor& x, int64_t stride) { return stride > 1 ? By::kAmx : forward_by(x, stride); }

By weight_gradient_by(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && amx::available() ? By::kAmx : By::kWinograd;
}

at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weight, int64_t stride, bool large_tiles) {
  check_conv3x3(x, weight, stride);
  const By by = forward_by(x, stride);
  const at::Tensor maps = x.contiguous(kLayout), w = weight.contiguous(kLayout);
  if (by == By::kWinograd) return winograd::convolution(maps, w, large_tiles);
  if (by == By::kAmx) return amx::convolution(maps, w, stride);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return at::conv2d(maps, w, {}, stride, 1).contiguous(kLayout);
}

at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, int64_t stride,
                          bool large_tiles) {
  const By by = input_gradient_by(x, stride);
  if (by == By::kWinograd) return winograd::input_gradient(grad, weight, large_tiles);
  if (by == By::kAmx) return amx::input_gradient(grad, weight, x.sizes(), stride);
  const auto [grad_x, _, __] =
      at::convolution_backward(grad, x, weight, std::nullopt, stride, 1, 1, false, 0, 1, {true, false, false});
  return grad_x.contiguous(kLayout);
}

std::tuple<at::Tensor, at::Tensor> conv3x3_backward(const at::Tensor& grad, const at::Tensor& x,
                                                    const at::Tensor& weight, int64_t stride, bool large_tiles,
                                                    bool for_x, bool for_weight) {
  check_conv3x3_backward(grad, x, weight, stride);
  forward_by(x, stride);  // raises where there is nothing
  const at::Tensor of_output = grad.contiguous(kLayout), maps = x.contiguous(kLayout);
  at::Tensor grad_x = at::empty({0}, x.options()), grad_weight = at::empty({0}, x.options());
  if (for_x) grad_x = input_gradient(of_output, maps, weight.contiguous(kLayout), stride, large_tiles);
  if (for_weight) {
    grad_weight = weight_gradient_by(x) == By::kAmx ? amx::weight_gradient(of_output, maps, stride)
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

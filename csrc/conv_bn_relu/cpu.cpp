// A convolution that adds bias and residual and applies ReLU while its sums are in registers. In float32 it is a layer
// of fused_net; in bfloat16, oneDNN's, which has the instructions for it. torch exports none of oneDNN's symbols, only
// private operators that call it: they are looked up, and where this torch or processor lacks them, and in other
// dtypes, ATen's public operators do the same in three passes.
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "conv_bn_relu/op.h"
#include "fused_net/op.h"

namespace resnet_min {
namespace {

using MaybeTensor = std::optional<at::Tensor>;
using MaybeText = std::optional<std::string_view>;
using Numbers = torch::List<std::optional<at::Scalar>>;
// x, weight, bias, padding, stride, dilation, groups; what follows the convolution, with which numbers.
using ConvUnary = at::Tensor(const at::Tensor&, const at::Tensor&, const MaybeTensor&, at::IntArrayRef, at::IntArrayRef,
                             at::IntArrayRef, int64_t, std::string_view, Numbers, MaybeText);
// x, other, weight, bias, …, groups; how `other` joins, times what; what follows, with which numbers.
using ConvBinary = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const MaybeTensor&,
                              at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t, std::string_view,
                              std::optional<at::Scalar>, MaybeText, Numbers, MaybeText);

// One of torch's private operators, or nothing where this torch has none or gave it another signature.
template <typename Signature>
std::optional<c10::TypedOperatorHandle<Signature>> find_operator(const char* name, const char* overload) {
  const auto found = c10::Dispatcher::singleton().findSchema({name, overload});
  if (!found) return std::nullopt;
  try {
    return found->typed<Signature>();
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

bool onednn_computes_in(at::ScalarType dtype) {
  static const bool bfloat16 = [] {
    const auto supported = find_operator<bool()>("mkldnn::_is_mkldnn_bf16_supported", "");
    return supported && supported->call();
  }();
  return at::globalContext().userEnabledMkldnn() && dtype == at::kBFloat16 && bfloat16;
}

// Whether it is a layer that fused_net takes. Its maps are in memory with their padding, which is not to outgrow them.
bool is_layer(const at::Tensor& x, const at::Tensor& weight, int64_t padding) {
  return x.scalar_type() == at::kFloat && x.numel() > 0 && !weight.is_mkldnn() &&
         padding < std::max(weight.size(2), weight.size(3)) &&
         are_few({x.size(0), x.size(1), x.size(2) + 2 * padding, x.size(3) + 2 * padding});
}

at::Tensor conv_bn_relu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const MaybeTensor& residual, int64_t stride, int64_t padding, bool relu) {
  static const auto unary = find_operator<ConvUnary>("mkldnn::_convolution_pointwise", "");
  static const auto binary = find_operator<ConvBinary>("mkldnn::_convolution_pointwise", "binary");
  check_conv_bn_relu(x, weight, bias, residual, stride, padding);
  constexpr auto layout = at::MemoryFormat::ChannelsLast;
  const auto shape = conv_output_shape(x, weight, stride, padding);
  if (x.size(0) == 0) return at::empty(shape, x.options(), layout);
  if (is_layer(x, weight, padding)) return fused_layer(x, weight, bias, residual, stride, padding, relu);
  if (x.scalar_type() == at::kBFloat16 && shape[3] == 1 && shape[2] > 1) {
    // With AMX, oneDNN (3.12, of torch 2.14) reads beyond such maps where it strides.
    const MaybeTensor added = residual ? MaybeTensor(residual->to(at::kFloat)) : std::nullopt;
    const at::Tensor dense = weight.is_mkldnn() ? weight.to_dense() : weight;
    return conv_bn_relu(x.to(at::kFloat), dense.to(at::kFloat), bias.to(at::kFloat), added, stride, padding, relu)
        .to(at::kBFloat16);
  }

  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  // oneDNN's operators heed the strides of x and residual, but take those of bias for 1.
  const at::Tensor input = x.contiguous(layout), addend = bias.contiguous();

  // The binary operator wants to see channels_last, which in 1×1 maps it does not, nor does it take those in bfloat16.
  const bool onednn = unary && binary && onednn_computes_in(x.scalar_type());
  const bool adds = onednn && residual && input.suggest_memory_format() == layout;
  const int64_t paddings[] = {padding, padding}, strides[] = {stride, stride}, dilations[] = {1, 1};
  at::Tensor out;
  if (adds) {
    out = binary->call(input, residual->contiguous(layout), weight, addend, paddings, strides, dilations, 1, "add",
                       std::nullopt, relu ? MaybeText("relu") : std::nullopt, Numbers(), std::nullopt);
  } else if (onednn) {
    out = unary->call(input, weight, addend, paddings, strides, dilations, 1, relu && !residual ? "relu" : "none",
                      Numbers(), std::nullopt);
  } else {
    out = at::conv2d(input, weight.is_mkldnn() ? weight.to_dense() : weight, addend, stride, padding);
  }
  if (residual && !adds) out.add_(*residual);
  if (relu && (residual ? !adds : !onednn)) out.relu_();
  // channels_last to the last stride: of 1×1 maps both leave those of NCHW, which lies in memory alike.
  const int64_t channels = shape[1], row = shape[3] * channels;
  return out.contiguous(layout).as_strided(shape, {shape[2] * row, 1, row, channels});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def(
      "conv_bn_relu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int stride, int padding, bool relu) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) { m.impl("conv_bn_relu", &conv_bn_relu); }
TORCH_LIBRARY_IMPL(resnet_min, MkldnnCPU, m) { m.impl("conv_bn_relu", &conv_bn_relu); }  // a weight in oneDNN's order

}  // namespace resnet_min

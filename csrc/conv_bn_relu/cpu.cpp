// A convolution that adds bias and residual and applies ReLU while a tile of its output is in registers. The arithmetic
// is oneDNN's, or Winograd's as conv3x3 has it where that is faster. torch exports none of oneDNN's symbols,
// only private operators that call it: they are looked up, and where this torch or processor lacks them, ATen's public
// operators do the same in three passes.
#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string_view>

#include "conv3x3/op.h"
#include "conv_bn_relu/op.h"

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
  return at::globalContext().userEnabledMkldnn() && (dtype == at::kFloat || (dtype == at::kBFloat16 && bfloat16));
}

// What winograd_weight made, [O / 64, 4, 4, C, 64], as [O, C, 3, 3], to be looked at only.
at::Tensor shaped_as_before(const at::Tensor& prepacked) {
  TORCH_CHECK_VALUE(prepacked.scalar_type() == at::kFloat && has_shape(prepacked, {kAnySize, 4, 4, kAnySize, kSlab}) &&
                        prepacked.is_contiguous(),
                    "conv_bn_relu: weight must be [O, C, h, w], or what ops.prepacked made; got ",
                    prepacked.scalar_type(), ' ', prepacked.sizes());
  return prepacked.as_strided({prepacked.size(0) * kSlab, prepacked.size(3), 3, 3}, {0, 0, 0, 0});
}

// The weight for Winograd's form, where that is the faster one for x of these sizes.
MaybeTensor prepacked_for_winograd(const at::Tensor& weight, at::IntArrayRef x, int64_t stride, int64_t padding) {
  TORCH_CHECK_VALUE(x.size() == 4, "conv_bn_relu: x must be [B, C, H, W]; got ", x);
  if (!winograd_pays(x, weight, stride, padding, kTilesIfPrepacked)) return std::nullopt;
  return winograd_weight(weight);
}

at::Tensor conv_bn_relu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const MaybeTensor& residual, int64_t stride, int64_t padding, bool relu) {
  static const auto unary = find_operator<ConvUnary>("mkldnn::_convolution_pointwise", "");
  static const auto binary = find_operator<ConvBinary>("mkldnn::_convolution_pointwise", "binary");
  const bool prepacked = weight.dim() == 5;
  const at::Tensor plain = prepacked ? shaped_as_before(weight) : weight;
  check_conv_bn_relu(x, plain, bias, residual, stride, padding);
  constexpr auto layout = at::MemoryFormat::ChannelsLast;
  const auto shape = conv_output_shape(x, plain, stride, padding);
  if (x.size(0) == 0) return at::empty(shape, x.options(), layout);
  // oneDNN's operators heed the strides of x and residual, but take those of bias for 1.
  const at::Tensor input = x.contiguous(layout), addend = bias.contiguous();
  if (prepacked) {
    TORCH_CHECK_VALUE(stride == 1 && padding == 1, "conv_bn_relu: this weight is for stride 1 and padding 1; got ",
                      stride, " and ", padding);
  }
  if (prepacked || winograd_pays(x.sizes(), weight, stride, padding, kTilesIfPlain)) {
    return winograd_conv(input, prepacked ? weight : winograd_weight(weight), addend,
                         residual ? std::make_optional(residual->contiguous(layout)) : residual, relu);
  }

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
  // A weight prepacked for this file's kernel and x of these sizes, where that is in Winograd's form.
  m.def("_winograd_weight(Tensor weight, int[] x, int stride, int padding) -> Tensor?");
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) {
  m.impl("conv_bn_relu", &conv_bn_relu);
  m.impl("_winograd_weight", &prepacked_for_winograd);
}
TORCH_LIBRARY_IMPL(resnet_min, MkldnnCPU, m) { m.impl("conv_bn_relu", &conv_bn_relu); }  // a weight in oneDNN's order

}  // namespace resnet_min

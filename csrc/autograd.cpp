// Autograd on every device: of the operators that train, in C++ because a Python function costs a small net's step
// several per cent; the others say that they do not differentiate.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace resnet_min {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                               const std::optional<at::Tensor>&, double, bool,
                                                               const std::optional<at::Tensor>&,
                                                               const std::optional<at::Tensor>&,
                                                               const std::optional<at::Tensor>&, double);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                                            const at::Tensor&, const at::Tensor&,
                                                                            const at::Tensor&, const at::Tensor&,
                                                                            const std::optional<at::Tensor>&, bool);

template <typename Signature>
c10::TypedOperatorHandle<Signature> operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void check_once(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(), op,
              ": its compiled kernel has no second derivative, which create_graph=True asks for; call "
              "resnet_min.ops.set_backend(\"reference\") first to have PyTorch compute it");
}

// What it keeps: x, four figures a channel and, where ReLU's mask cannot be made from x again, the output.
struct BnAddRelu : torch::autograd::Function<BnAddRelu> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& gamma,
                               const at::Tensor& beta, const std::optional<at::Tensor>& residual, double eps, bool relu,
                               const std::optional<at::Tensor>& running_mean,
                               const std::optional<at::Tensor>& running_var,
                               const std::optional<at::Tensor>& num_batches_tracked, double momentum) {
    static const auto op = operator_named<Forward>("resnet_min::bn_add_relu");
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, mean, invstd] =
        op.call(x, gamma, beta, residual, eps, relu, running_mean, running_var, num_batches_tracked, momentum);
    for (const auto& buffer : {running_mean, running_var, num_batches_tracked}) {
      if (buffer && !buffer->is_inference()) buffer->unsafeGetTensorImpl()->bump_version();
    }
    const bool needs_out = relu && residual.has_value();
    context->save_for_backward({x, gamma, beta, mean, invstd, needs_out ? out : at::Tensor()});
    context->saved_data["residual"] = residual.has_value();
    context->saved_data["relu"] = relu;
    context->mark_non_differentiable({mean, invstd});
    return {out, mean, invstd};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    static const auto op = operator_named<Backward>("resnet_min::bn_add_relu_backward");
    check_once("bn_add_relu");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& out = saved[5];
    auto [grad_x, grad_gamma, grad_beta, grad_residual] =
        op.call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                out.defined() ? std::make_optional(out) : std::nullopt, context->saved_data["relu"].toBool());
    if (!out.defined()) grad_residual = context->saved_data["residual"].toBool() ? grads[0] : at::Tensor();
    const at::Tensor none;
    return {grad_x, grad_gamma, grad_beta, grad_residual, none, none, none, none, none, none};
  }
};

struct Conv3x3 : torch::autograd::Function<Conv3x3> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, int64_t stride,
                            bool large_tiles) {
    using Forward = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, bool);
    static const auto op = operator_named<Forward>("resnet_min::conv3x3");
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, weight});
    context->saved_data["stride"] = stride;
    context->saved_data["large_tiles"] = large_tiles;
    return op.call(x, weight, stride, large_tiles);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    using Gradients = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                         int64_t, bool, bool, bool);
    static const auto op = operator_named<Gradients>("resnet_min::conv3x3_backward");
    check_once("conv3x3");
    const variable_list saved = context->get_saved_variables();
    const bool for_x = context->needs_input_grad(0), for_weight = context->needs_input_grad(1);
    auto [grad_x, grad_weight] = op.call(grads[0], saved[0], saved[1], context->saved_data["stride"].toInt(),
                                         context->saved_data["large_tiles"].toBool(), for_x, for_weight);
    const at::Tensor none;
    return {for_x ? grad_x : none, for_weight ? grad_weight : none, none, none};
  }
};

at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weight, int64_t stride, bool large_tiles) {
  return Conv3x3::apply(x, weight, stride, large_tiles);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_add_relu(
    const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const std::optional<at::Tensor>& residual,
    double eps, bool relu, const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
    const std::optional<at::Tensor>& num_batches_tracked, double momentum) {
  const variable_list outputs =
      BnAddRelu::apply(x, gamma, beta, residual, eps, relu, running_mean, running_var, num_batches_tracked, momentum);
  return {outputs[0], outputs[1], outputs[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(resnet_min, Autograd, m) {
  m.impl("bn_add_relu", &bn_add_relu);
  m.impl("conv3x3", &conv3x3);
  for (const char* op : {"conv_bn_relu", "fused_net", "crop_flip"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace resnet_min

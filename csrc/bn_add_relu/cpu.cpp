// Batch normalisation with the batch's statistics, an addition and a ReLU, forward and backward, for channels_last
// tensors: one pass over the input that sums, and one that computes the output.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "bn_add_relu/cpu_passes.h"
#include "bn_add_relu/op.h"

namespace resnet_min {
namespace {

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kDouble};
constexpr const char* kPass = "bn_add_relu";  // it takes what they do, and its reference has the words for the rest

// ---- the passes, for a batch that several processes share ----

at::Tensor bn_moments(const at::Tensor& x) {
  check_maps(kPass, x, kDtypes);
  const at::Tensor result = at::empty({3, x.size(1)}, at::kDouble);
  with_type(x, [&](auto t) { moments<decltype(t)>(x, result); });
  return result;
}

at::Tensor bn_apply(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const at::Tensor& mean,
                    const at::Tensor& invstd, const std::optional<at::Tensor>& residual, bool relu) {
  check_maps(kPass, x, kDtypes);
  check_channels(kPass, x, {gamma, beta, mean, invstd});
  require(!residual || is_like(*residual, x), kPass);
  const at::Tensor addend = residual ? as_channels_last(*residual) : at::Tensor(), out = at::empty_like(x);
  with_type(x, [&](auto t) { apply<decltype(t)>(x, {gamma, beta, mean, invstd}, addend, relu, out); });
  return out;
}

std::tuple<at::Tensor, at::Tensor> bn_gradient_sums(const at::Tensor& grad, const at::Tensor& x,
                                                    const at::Tensor& gamma, const at::Tensor& beta,
                                                    const at::Tensor& mean, const at::Tensor& invstd,
                                                    const std::optional<at::Tensor>& out, bool relu) {
  check_maps(kPass, x, kDtypes);
  check_channels(kPass, x, {gamma, beta, mean, invstd});
  require(is_like(grad, x) && (!out || (relu && is_like(*out, x))), kPass);
  const at::Tensor output = out ? as_channels_last(*out) : at::Tensor(),
                   masked = out ? at::empty_like(x) : at::empty({0}, x.options());
  const at::Tensor result = at::empty({2, x.size(1)}, at::kDouble);
  with_type(x, [&](auto t) {
    gradient_sums<decltype(t)>(as_channels_last(grad), x, {gamma, beta, mean, invstd}, output, relu, masked, result);
  });
  return {result, masked};
}

at::Tensor bn_input_gradient(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma,
                             const at::Tensor& beta, const at::Tensor& mean, const at::Tensor& invstd,
                             const at::Tensor& means, bool relu) {
  check_maps(kPass, x, kDtypes);
  check_channels(kPass, x, {gamma, beta, mean, invstd});
  require(is_like(grad, x) && fits(means, at::kDouble, {2, x.size(1)}, x), kPass);
  const at::Tensor grad_x = at::empty_like(x);
  with_type(x, [&](auto t) {
    input_gradients<decltype(t)>(as_channels_last(grad), x, {gamma, beta, mean, invstd}, means.contiguous(), relu,
                                 grad_x);
  });
  return grad_x;
}

// ---- all of them as one ----

// The two rows of float64 figures, in gamma's dtype.
std::tuple<at::Tensor, at::Tensor> rounded(const at::Tensor& figures, const at::Tensor& gamma) {
  const at::Tensor result[] = {at::empty({gamma.numel()}, gamma.options()),
                               at::empty({gamma.numel()}, gamma.options())};
  const double* from = values<double>(figures);
  for (const at::Tensor& row : result) {
    if (gamma.scalar_type() == at::kDouble) {
      std::copy_n(from, row.numel(), room<double>(row));
    } else {
      std::transform(from, from + row.numel(), room<float>(row), [](double v) { return static_cast<float>(v); });
    }
    from += row.numel();
  }
  return {result[0], result[1]};
}

// Of the running statistics, by a batch's moments.
template <typename A>
void update(const Running& running, const at::Tensor& found) {
  const int64_t channels = running.mean->numel();
  const double *count = values<double>(found), *means = count + channels, *distances = means + channels;
  A *of_mean = room<A>(*running.mean), *of_variance = room<A>(*running.var);
  for (int64_t c = 0; c < channels; ++c) {
    of_mean[c] = static_cast<A>(moved<double>(of_mean[c], means[c], running.momentum));
    of_variance[c] = static_cast<A>(moved<double>(of_variance[c], distances[c] / (count[c] - 1), running.momentum));
  }
  ++*room<int64_t>(*running.batches);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_add_relu(
    const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const std::optional<at::Tensor>& residual,
    double eps, bool relu, const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
    const std::optional<at::Tensor>& num_batches_tracked, double momentum) {
  const Running running{running_mean, running_var, num_batches_tracked, momentum};
  check_bn_add_relu(x, gamma, beta, residual, eps, running, kDtypes);
  const int64_t channels = x.size(1);
  const at::Tensor found = bn_moments(x), figures = at::empty({2, channels}, at::kDouble);
  const double *count = values<double>(found), *means = count + channels, *distances = means + channels;
  double* invstds = std::copy(means, distances, room<double>(figures));
  for (int64_t c = 0; c < channels; ++c) invstds[c] = inverse_std(distances[c] / count[c] + eps);
  const auto [mean, invstd] = rounded(figures, gamma);
  if (running) {
    if (gamma.scalar_type() == at::kDouble) {
      update<double>(running, found);
    } else {
      update<float>(running, found);
    }
  }
  return {bn_apply(x, gamma, beta, mean, invstd, residual, relu), mean, invstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_add_relu_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& out, bool relu) {
  check_bn_add_relu_backward(grad, x, gamma, beta, mean, invstd, out, relu, kDtypes);
  const at::Tensor given = as_channels_last(grad);
  auto [sums, masked] = bn_gradient_sums(given, x, gamma, beta, mean, invstd, out, relu);
  const auto [grad_beta, grad_gamma] = rounded(sums, gamma);
  const double count = static_cast<double>(x.numel() / x.size(1));
  double* means = room<double>(sums);
  for (int64_t i = 0; i < sums.numel(); ++i) means[i] /= count;
  // The masked gradient, where there is one, needs no mask.
  const at::Tensor grad_x = bn_input_gradient(out ? masked : given, x, gamma, beta, mean, invstd, sums, relu && !out);
  return {grad_x, grad_gamma, grad_beta, masked};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def(
      "bn_add_relu(Tensor x, Tensor gamma, Tensor beta, Tensor? residual, float eps, bool relu, Tensor(a!)? "
      "running_mean=None, Tensor(b!)? running_var=None, Tensor(c!)? num_batches_tracked=None, float momentum=0.1) -> "
      "(Tensor out, Tensor mean, Tensor invstd)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_add_relu_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor invstd, Tensor? out, "
      "bool relu) -> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta, Tensor grad_residual)",
      {at::Tag::pt2_compliant_tag});
  m.def("bn_moments(Tensor x) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_apply(Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor invstd, Tensor? residual, bool relu) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_gradient_sums(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor invstd, Tensor? out, "
      "bool "
      "relu) -> (Tensor sums, Tensor masked)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_input_gradient(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor invstd, Tensor means, "
      "bool relu) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) {
  m.impl("bn_moments", &bn_moments);
  m.impl("bn_apply", &bn_apply);
  m.impl("bn_gradient_sums", &bn_gradient_sums);
  m.impl("bn_input_gradient", &bn_input_gradient);
  m.impl("bn_add_relu", &bn_add_relu);
  m.impl("bn_add_relu_backward", &bn_add_relu_backward);
}

}  // namespace resnet_min

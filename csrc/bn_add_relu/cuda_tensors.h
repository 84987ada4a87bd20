// bn_add_relu on CUDA but for the kernels: run(pass), which is a Forward<T> or Backward<T>, is to launch them.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <initializer_list>
#include <tuple>

#include "bn_add_relu/cuda_passes.h"
#include "bn_add_relu/op.h"

namespace resnet_min {

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};

// body(T()), where T is the type of `dtype`.
template <typename Body>
void with_type_of(at::ScalarType dtype, const Body& body) {
  if (dtype == at::kBFloat16) return body(at::BFloat16());
  if (dtype == at::kHalf) return body(at::Half());
  if (dtype == at::kFloat) return body(float());
  body(double());
}

template <typename T>
const T* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
T* data_to(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

template <typename A>
RunningPointers<A> pointers_of(const Running& running) {
  if (!running) return {};
  return {data_to<A>(*running.mean), data_to<A>(*running.var), data_to<int64_t>(*running.batches),
          static_cast<A>(running.momentum)};
}

template <typename T>
Sizes sizes_of(const at::Tensor& x, std::initializer_list<at::Tensor> tensors) {
  const bool aligned = std::all_of(tensors.begin(), tensors.end(), [](const auto& tensor) {
    return !tensor.defined() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  });
  return {x.numel() / x.size(1), static_cast<int>(x.size(1)), aligned && x.size(1) % kVector<T> == 0};
}

// Room for `figures` of each channel of each row block.
inline at::Tensor partial_sums(const Layout& layout, int64_t figures, const at::Tensor& like) {
  return at::empty({layout.row_blocks, layout.channels, figures}, like.options());
}

template <typename Run>
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_by(const Run& run, const at::Tensor& x, const at::Tensor& gamma,
                                                          const at::Tensor& beta,
                                                          const std::optional<at::Tensor>& residual, double eps,
                                                          bool relu, const Running& running) {
  check_bn_add_relu(x, gamma, beta, residual, eps, running, kDtypes);
  const at::Tensor addend = residual ? as_channels_last(*residual) : at::Tensor();
  const at::Tensor scale = gamma.contiguous(), shift = beta.contiguous();
  at::Tensor out = at::empty_like(x), mean = at::empty({x.size(1)}, gamma.options()), invstd = at::empty_like(mean);
  with_type_of(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = SumOf<T>;
    const Sizes sizes = sizes_of<T>(x, {x, addend, out, scale, shift, mean, invstd});
    const at::Tensor partial = partial_sums(sizes.sums<T>(), Forward<T>::kFigures, mean);
    run(Forward<T>{data_of<T>(x), data_of<T>(addend), data_of<A>(scale), data_of<A>(shift), eps, relu, data_to<T>(out),
                   data_to<A>(mean), data_to<A>(invstd), pointers_of<A>(running), partial.mutable_data_ptr(), sizes});
  });
  return {out, mean, invstd};
}

template <typename Run>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_by(
    const Run& run, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& out, bool relu) {
  check_bn_add_relu_backward(grad, x, gamma, beta, mean, invstd, out, relu, kDtypes);
  const at::Tensor output_grad = as_channels_last(grad), output = out ? as_channels_last(*out) : at::Tensor();
  const at::Tensor scale = gamma.contiguous(), shift = beta.contiguous();
  const at::Tensor means = mean.contiguous(), invstds = invstd.contiguous();
  at::Tensor grad_x = at::empty_like(x), grad_gamma = at::empty({x.size(1)}, gamma.options());
  at::Tensor grad_beta = at::empty_like(grad_gamma);
  at::Tensor grad_residual = out ? at::empty_like(x) : at::empty({0}, x.options());
  with_type_of(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = SumOf<T>;
    const Sizes sizes = sizes_of<T>(
        x, {output_grad, x, output, grad_x, grad_residual, scale, shift, means, invstds, grad_gamma, grad_beta});
    const at::Tensor partial = partial_sums(sizes.sums<T>(), Backward<T>::kFigures, means);
    run(Backward<T>{data_of<T>(output_grad), data_of<T>(x), data_of<T>(output), data_of<A>(scale), data_of<A>(shift),
                    data_of<A>(means), data_of<A>(invstds), relu, data_to<T>(grad_x),
                    out ? data_to<T>(grad_residual) : nullptr, data_to<A>(grad_gamma), data_to<A>(grad_beta),
                    partial.mutable_data_ptr(), sizes});
  });
  return {grad_x, grad_gamma, grad_beta, grad_residual};
}

}  // namespace resnet_min

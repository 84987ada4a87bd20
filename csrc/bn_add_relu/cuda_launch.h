// bn_add_relu on CUDA but for the launches themselves: launch(kernel, blocks, arguments of the kernel …).
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <initializer_list>
#include <tuple>

#include "bn_add_relu/cuda_kernel.h"

namespace resnet_min {

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};

template <typename T>
inline const T* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
inline T* data_to(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Room for so many figures for each channel of each row block.
inline at::Tensor partial_sums(const Layout& layout, int64_t figures, const at::Tensor& like) {
  return at::empty({layout.row_blocks, layout.channels, figures}, like.options());
}

// Of what the row blocks have summed, as rows themselves.
inline Layout finishing(const Layout& layout) { return Layout(layout.row_blocks, layout.channels, 1, 1); }

struct Forward {
  at::Tensor x, gamma, beta, residual;
  double eps;
  bool relu;
  at::Tensor out, mean, invstd;

  template <typename T, int V, typename Launch>
  void run(const Launch& launch) const {
    using A = SumOf<T>;
    const int64_t rows = x.numel() / x.size(1);
    const int channels = static_cast<int>(x.size(1));
    const Layout sums(rows, channels, V, kSumBlocks), applying(rows, channels, V, kApplyBlocks);
    const Layout finish = finishing(sums);
    const at::Tensor partial = partial_sums(sums, 3, mean);
    auto* moments = static_cast<Moments<A>*>(partial.mutable_data_ptr());
    launch(moments_kernel<T, V>, sums.grid(), data_of<T>(x), moments, sums);
    launch(finish_moments_kernel<A>, finish.grid(), moments, data_to<A>(mean), data_to<A>(invstd), static_cast<A>(eps),
           finish);
    const auto normalise = residual.defined()
                               ? (relu ? normalise_kernel<T, V, true, true> : normalise_kernel<T, V, true, false>)
                               : (relu ? normalise_kernel<T, V, false, true> : normalise_kernel<T, V, false, false>);
    launch(normalise, applying.grid(), data_of<T>(x), data_of<T>(residual), data_of<A>(gamma), data_of<A>(beta),
           data_of<A>(mean), data_of<A>(invstd), data_to<T>(out), applying);
  }
};

struct Backward {
  at::Tensor grad, x, gamma, beta, mean, invstd, out;
  bool relu;
  at::Tensor grad_x, grad_gamma, grad_beta, grad_residual;

  template <typename T, int V, typename Launch>
  void run(const Launch& launch) const {
    using A = SumOf<T>;
    const int64_t rows = x.numel() / x.size(1);
    const int channels = static_cast<int>(x.size(1));
    const Layout sums(rows, channels, V, kSumBlocks), applying(rows, channels, V, kApplyBlocks);
    const Layout finish = finishing(sums);
    const at::Tensor partial = partial_sums(sums, 2, mean);
    auto* sum = static_cast<GradientSums<A>*>(partial.mutable_data_ptr());
    const auto sum_gradients = !relu           ? gradient_sums_kernel<T, V, Mask::kNone>
                               : out.defined() ? gradient_sums_kernel<T, V, Mask::kFromOut>
                                               : gradient_sums_kernel<T, V, Mask::kFromX>;
    launch(sum_gradients, sums.grid(), data_of<T>(grad), data_of<T>(x), data_of<T>(out), data_of<A>(gamma),
           data_of<A>(beta), data_of<A>(mean), data_of<A>(invstd), out.defined() ? data_to<T>(grad_residual) : nullptr,
           sum, sums);
    launch(finish_gradient_sums_kernel<A>, finish.grid(), sum, data_of<A>(invstd), data_to<A>(grad_gamma),
           data_to<A>(grad_beta), finish);
    const auto apply = relu && !out.defined() ? input_gradient_kernel<T, V, true> : input_gradient_kernel<T, V, false>;
    launch(apply, applying.grid(), data_of<T>(out.defined() ? grad_residual : grad), data_of<T>(x), data_of<A>(gamma),
           data_of<A>(beta), data_of<A>(mean), data_of<A>(invstd), data_of<A>(grad_gamma), data_of<A>(grad_beta),
           data_to<T>(grad_x), rows, applying);
  }
};

// 16 bytes at a time, where every row of every tensor starts on 16 bytes.
template <typename T, typename Pass, typename Launch>
void run_vectorised(const Pass& pass, const Launch& launch, const at::Tensor& x,
                    std::initializer_list<at::Tensor> tensors) {
  constexpr int kVector = 16 / sizeof(T);
  const bool aligned = x.size(1) % kVector == 0 && std::all_of(tensors.begin(), tensors.end(), [](const auto& tensor) {
                         return !tensor.defined() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
                       });
  if (aligned) {
    pass.template run<T, kVector>(launch);
  } else {
    pass.template run<T, 1>(launch);
  }
}

template <typename Pass, typename Launch>
void run(const Pass& pass, const Launch& launch, const at::Tensor& x, std::initializer_list<at::Tensor> tensors) {
  const auto run_as = x.scalar_type() == at::kBFloat16 ? run_vectorised<at::BFloat16, Pass, Launch>
                      : x.scalar_type() == at::kHalf   ? run_vectorised<at::Half, Pass, Launch>
                      : x.scalar_type() == at::kFloat  ? run_vectorised<float, Pass, Launch>
                                                       : run_vectorised<double, Pass, Launch>;
  run_as(pass, launch, x, tensors);
}

template <typename Launch>
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_by(const Launch& launch, const at::Tensor& x,
                                                          const at::Tensor& gamma, const at::Tensor& beta,
                                                          const std::optional<at::Tensor>& residual, double eps,
                                                          bool relu) {
  check_bn_add_relu(x, gamma, beta, residual, eps, kDtypes);
  const at::Tensor addend = residual ? as_channels_last(*residual) : at::Tensor();
  at::Tensor out = at::empty_like(x), mean = at::empty({x.size(1)}, gamma.options()), invstd = at::empty_like(mean);
  const Forward pass{x, gamma.contiguous(), beta.contiguous(), addend, eps, relu, out, mean, invstd};
  run(pass, launch, x, {x, addend, out});
  return {out, mean, invstd};
}

template <typename Launch>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_by(
    const Launch& launch, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& out, bool relu) {
  check_bn_add_relu_backward(grad, x, gamma, beta, mean, invstd, out, relu, kDtypes);
  const at::Tensor output_grad = as_channels_last(grad), output = out ? as_channels_last(*out) : at::Tensor();
  at::Tensor grad_x = at::empty_like(x), grad_gamma = at::empty({x.size(1)}, gamma.options());
  at::Tensor grad_beta = at::empty_like(grad_gamma);
  at::Tensor grad_residual = out ? at::empty_like(x) : at::empty({0}, x.options());
  const Backward pass{
      output_grad, x,      gamma.contiguous(), beta.contiguous(), mean.contiguous(), invstd.contiguous(), output,
      relu,        grad_x, grad_gamma,         grad_beta,         grad_residual};
  run(pass, launch, x, {output_grad, x, output, grad_x, grad_residual});
  return {grad_x, grad_gamma, grad_beta, grad_residual};
}

}  // namespace resnet_min

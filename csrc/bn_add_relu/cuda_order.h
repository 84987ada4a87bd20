// What launches bn_add_relu's kernels, in which order: launch(kernel, blocks, arguments of the kernel …) does each.
#pragma once

#include "bn_add_relu/cuda_kernel.h"

namespace resnet_min {

// Of what the row blocks have summed, as rows themselves.
inline Layout finishing(const Layout& layout) { return Layout(layout.row_blocks, layout.channels, 1, 1); }

template <int V, typename T, typename Launch>
void run_as(const Forward<T>& pass, const Launch& launch) {
  using A = SumOf<T>;
  const Layout sums = pass.sizes.template sums<T>(), finish = finishing(sums);
  const Layout applying(pass.sizes.rows, pass.sizes.channels, V, kApplyBlocks);
  auto* moments = static_cast<Moments<A>*>(pass.partial);
  launch(moments_kernel<T, V>, sums.grid(), pass.x, moments, sums);
  launch(finish_moments_kernel<A>, finish.grid(), moments, pass.mean, pass.invstd, pass.running,
         static_cast<A>(pass.eps), finish);
  const auto normalise = pass.residual
                             ? (pass.relu ? normalise_kernel<T, V, true, true> : normalise_kernel<T, V, true, false>)
                             : (pass.relu ? normalise_kernel<T, V, false, true> : normalise_kernel<T, V, false, false>);
  launch(normalise, applying.grid(), pass.x, pass.residual, pass.gamma, pass.beta, pass.mean, pass.invstd, pass.out,
         applying);
}

template <int V, typename T, typename Launch>
void run_as(const Backward<T>& pass, const Launch& launch) {
  using A = SumOf<T>;
  const Layout sums = pass.sizes.template sums<T>(), finish = finishing(sums);
  const Layout applying(pass.sizes.rows, pass.sizes.channels, V, kApplyBlocks);
  auto* sum = static_cast<GradientSums<A>*>(pass.partial);
  const auto sum_gradients = !pass.relu ? gradient_sums_kernel<T, V, Mask::kNone>
                             : pass.out ? gradient_sums_kernel<T, V, Mask::kFromOut>
                                        : gradient_sums_kernel<T, V, Mask::kFromX>;
  launch(sum_gradients, sums.grid(), pass.grad, pass.x, pass.out, pass.gamma, pass.beta, pass.mean, pass.invstd,
         pass.grad_residual, sum, sums);
  launch(finish_gradient_sums_kernel<A>, finish.grid(), sum, pass.invstd, pass.grad_gamma, pass.grad_beta, finish);
  const auto apply = pass.relu && !pass.out ? input_gradient_kernel<T, V, true> : input_gradient_kernel<T, V, false>;
  launch(apply, applying.grid(), pass.out ? pass.grad_residual : pass.grad, pass.x, pass.gamma, pass.beta, pass.mean,
         pass.invstd, pass.grad_gamma, pass.grad_beta, pass.grad_x, pass.sizes.rows, applying);
}

template <template <typename> typename Pass, typename T, typename Launch>
void run(const Pass<T>& pass, const Launch& launch) {
  if (pass.sizes.vectorised) {
    run_as<kVector<T>>(pass, launch);
  } else {
    run_as<1>(pass, launch);
  }
}

}  // namespace resnet_min

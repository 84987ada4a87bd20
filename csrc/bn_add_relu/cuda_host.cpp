// Batch normalisation with the batch's statistics, an addition and a ReLU, forward and backward, on CUDA.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bn_add_relu/cuda_launch.h"
#include "bn_add_relu/cuda_tensors.h"

namespace resnet_min {
namespace {

struct Run {
  template <typename Pass>
  void operator()(const Pass& pass) const {
    C10_CUDA_CHECK(run_on(c10::cuda::getCurrentCUDAStream(), pass));
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_add_relu(
    const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const std::optional<at::Tensor>& residual,
    double eps, bool relu, const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
    const std::optional<at::Tensor>& num_batches_tracked, double momentum) {
  const c10::cuda::CUDAGuard guard(x.device());
  return forward_by(Run(), x, gamma, beta, residual, eps, relu,
                    {running_mean, running_var, num_batches_tracked, momentum});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_add_relu_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& out, bool relu) {
  const c10::cuda::CUDAGuard guard(x.device());
  return backward_by(Run(), grad, x, gamma, beta, mean, invstd, out, relu);
}

}  // namespace

TORCH_LIBRARY_IMPL(resnet_min, CUDA, m) {
  m.impl("bn_add_relu", &bn_add_relu);
  m.impl("bn_add_relu_backward", &bn_add_relu_backward);
}

}  // namespace resnet_min

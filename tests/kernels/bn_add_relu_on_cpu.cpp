// The CUDA kernels of bn_add_relu, compiled as C++ and run on the CPU: see cuda_on_cpu.h.
#include <torch/extension.h>

#include "cuda_on_cpu.h"
// After the above, which stands in for what nvcc knows.
#include "bn_add_relu/cuda_order.h"
#include "bn_add_relu/cuda_tensors.h"

namespace {

struct Launch {
  template <typename Kernel, typename... Arguments>
  void operator()(Kernel kernel, int blocks, const Arguments&... arguments) const {
    cuda_on_cpu::launch(blocks, resnet_min::kThreads, [&] { kernel(arguments...); });
  }
};

struct Run {
  template <typename Pass>
  void operator()(const Pass& pass) const {
    resnet_min::run(pass, Launch());
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& gamma,
                                                       const at::Tensor& beta,
                                                       const std::optional<at::Tensor>& residual, double eps,
                                                       bool relu) {
  return resnet_min::forward_by(Run(), x, gamma, beta, residual, eps, relu);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                                                    const at::Tensor& gamma, const at::Tensor& beta,
                                                                    const at::Tensor& mean, const at::Tensor& invstd,
                                                                    const std::optional<at::Tensor>& out, bool relu) {
  return resnet_min::backward_by(Run(), grad, x, gamma, beta, mean, invstd, out, relu);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("bn_add_relu", &forward);
  m.def("bn_add_relu_backward", &backward);
}

// The launches of bn_add_relu's kernels, forward and backward: each way a pass over the tensors that sums, a few blocks
// that finish the sums, and a pass that computes the output.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "bn_add_relu/cuda_launch.h"
#include "bn_add_relu/cuda_order.h"

namespace resnet_min {
namespace {

struct Launch {
  cudaStream_t stream;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int blocks, const Arguments&... arguments) const {
    kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
  }
};

}  // namespace

template <typename Pass>
cudaError_t run_on(cudaStream_t stream, const Pass& pass) {
  run(pass, Launch{stream});
  return cudaGetLastError();
}

template cudaError_t run_on(cudaStream_t, const Forward<c10::BFloat16>&);
template cudaError_t run_on(cudaStream_t, const Forward<c10::Half>&);
template cudaError_t run_on(cudaStream_t, const Forward<float>&);
template cudaError_t run_on(cudaStream_t, const Forward<double>&);
template cudaError_t run_on(cudaStream_t, const Backward<c10::BFloat16>&);
template cudaError_t run_on(cudaStream_t, const Backward<c10::Half>&);
template cudaError_t run_on(cudaStream_t, const Backward<float>&);
template cudaError_t run_on(cudaStream_t, const Backward<double>&);

}  // namespace resnet_min

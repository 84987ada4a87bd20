// What cuda_host.cpp asks of cuda.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "bn_add_relu/cuda_passes.h"

namespace resnet_min {

// All kernels of a Forward<T> or Backward<T>; T: c10::BFloat16, c10::Half, float, double.
template <typename Pass>
cudaError_t run_on(cudaStream_t stream, const Pass& pass);

}  // namespace resnet_min

// Of torch's header what cuda_host.cpp uses.
#pragma once

#include <cuda_runtime_api.h>

namespace c10::cuda {

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda

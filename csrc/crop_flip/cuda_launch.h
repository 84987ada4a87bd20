// What cuda_host.cpp asks of cuda.cu, without torch's headers: nvcc parses a source four times.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "crop_flip/geometry.h"

namespace resnet_min {

// Entries of the table and of `out` have 2, 4 or 8 bytes. There must be fewer than 2**31 blocks, and at least one.
struct CropFlip {
  const uint8_t* images;
  const int64_t *index, *offset;
  const bool* flip;
  const void* table;
  void* out;
  Geometry geometry;
};

cudaError_t launch_crop_flip(const CropFlip& call, size_t entry_size, int blocks, cudaStream_t stream);

}  // namespace resnet_min

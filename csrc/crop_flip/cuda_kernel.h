// The kernel of cuda.cu.
#pragma once

#include "crop_flip/geometry.h"

namespace resnet_min {

constexpr int kThreads = 256;

// A block owns kTile consecutive pixels of one output image. It reads their 3 bytes each and the table (from L2, all
// blocks read the same), and writes 3 * sizeof(T) bytes a pixel: in bfloat16 3 KiB are read and 6 KiB written.
// First a thread owns every kThreads-th pixel of the tile and brings its bytes into shared memory, neighbours on
// neighbours; then it owns every kThreads-th 16 bytes of the output, across pixels, so that a warp writes 512
// bytes without a gap. T has the size of the table's dtype: entries are moved, never computed with.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    crop_flip_kernel(const uint8_t* __restrict__ images, const int64_t* __restrict__ index,
                     const int64_t* __restrict__ offset, const bool* __restrict__ flip, const T* __restrict__ table,
                     T* __restrict__ out, Geometry g) {
  constexpr int kVector = 16 / sizeof(T);
  struct alignas(16) Entries {
    T entry[kVector];
  };
  struct alignas(kVector) Bytes {
    uint8_t byte[kVector];
  };
  __shared__ T entries[3 * 256];
  alignas(16) __shared__ uint8_t bytes[3 * kTile];

  const int64_t b = blockIdx.x / g.tiles;
  const int first_pixel = static_cast<int>(blockIdx.x % g.tiles) * kTile;
  const int rest = g.height * g.width - first_pixel, pixels = rest < kTile ? rest : kTile;
  const int64_t i = index[b], top = offset[2 * b], left = offset[2 * b + 1];
  CUDA_KERNEL_ASSERT(0 <= i && i < g.images && "crop_flip: index out of range");
  CUDA_KERNEL_ASSERT(0 <= top && top <= 2 * g.padding && "crop_flip: offset out of range");
  CUDA_KERNEL_ASSERT(0 <= left && left <= 2 * g.padding && "crop_flip: offset out of range");
  const Span rows = source_span(static_cast<int>(top) - g.padding, g.height, false);
  const Span columns = source_span(static_cast<int>(left) - g.padding, g.width, flip[b]);
  const uint8_t* image = images + i * g.image_stride;

  for (int e = threadIdx.x; e < 3 * 256; e += kThreads) entries[e] = table[e];
  for (int p = threadIdx.x; p < pixels; p += kThreads) {
    const int y = (first_pixel + p) / g.width, x = (first_pixel + p) % g.width;
    const bool inside = rows.begin <= y && y < rows.end && columns.begin <= x && x < columns.end;
    const uint8_t* source = image + (rows.first + y) * g.row_stride + 3 * (columns.first + columns.stride * x);
    for (int c = 0; c < 3; ++c) bytes[3 * p + c] = inside ? source[c] : 0;
  }
  __syncthreads();

  const int elements = 3 * pixels;
  T* tile = out + 3 * (b * g.height * g.width + first_pixel);
  // An image of an odd size does not start on 16 bytes: then all of it is written entry by entry, as the ragged end is.
  const int vectors = reinterpret_cast<uintptr_t>(tile) % 16 == 0 ? elements / kVector : 0;
  for (int v = threadIdx.x; v < vectors; v += kThreads) {
    const Bytes in = reinterpret_cast<const Bytes*>(bytes)[v];
    Entries result;
    int channel = v * kVector % 3;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      result.entry[k] = entries[256 * channel + in.byte[k]];
      channel = channel == 2 ? 0 : channel + 1;
    }
    reinterpret_cast<Entries*>(tile)[v] = result;
  }
  for (int e = vectors * kVector + threadIdx.x; e < elements; e += kThreads) {
    tile[e] = entries[256 * (e % 3) + bytes[e]];
  }
}

}  // namespace resnet_min

// Crop, flip and normalise a batch of images: the two steps of cpu/crop_flip.cpp, with the bytes in shared memory.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common.h"

namespace resnet_min {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;  // pixels a block writes: one 32x32 image

struct Geometry {
  int64_t images, image_stride, row_stride;
  int height, width, padding, tiles;  // tiles: of kTile pixels, an image
};

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
  __shared__ alignas(16) uint8_t bytes[3 * kTile];

  const int64_t b = blockIdx.x / g.tiles;
  const int first_pixel = static_cast<int>(blockIdx.x % g.tiles) * kTile;
  const int pixels = min(kTile, g.height * g.width - first_pixel);
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
    const uint8_t* source = image + (rows.first + y) * g.row_stride + 3 * (columns.first + columns.step * x);
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

template <typename T>
void launch(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset, const at::Tensor& flip,
            const at::Tensor& table, const at::Tensor& out, const Geometry& geometry) {
  const int64_t blocks = index.size(0) * geometry.tiles;
  TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int32_t>::max(), "crop_flip: the batch has too many pixels; got ",
                    out.sizes());
  crop_flip_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      images.const_data_ptr<uint8_t>(), index.const_data_ptr<int64_t>(), offset.const_data_ptr<int64_t>(),
      flip.const_data_ptr<bool>(), static_cast<const T*>(table.const_data_ptr()),
      static_cast<T*>(out.mutable_data_ptr()), geometry);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor crop_flip(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset,
                     const at::Tensor& flip, const at::Tensor& table, int64_t padding) {
  check_crop_flip(images, index, offset, flip, table, padding);
  const c10::cuda::CUDAGuard guard(images.device());
  at::Tensor out = at::empty({index.size(0), images.size(1), images.size(2), 3}, table.options());
  if (out.numel() > 0) {
    const int height = static_cast<int>(images.size(1)), width = static_cast<int>(images.size(2));
    const Geometry geometry{images.size(0),
                            images.stride(0),
                            images.stride(1),
                            height,
                            width,
                            static_cast<int>(padding),
                            (height * width + kTile - 1) / kTile};
    const auto run = table.element_size() == 2   ? launch<uint16_t>
                     : table.element_size() == 4 ? launch<uint32_t>
                                                 : launch<uint64_t>;
    run(images, index.contiguous(), offset.contiguous(), flip.contiguous(), table.contiguous(), out, geometry);
  }
  return out.permute({0, 3, 1, 2});  // channels_last
}

}  // namespace

TORCH_LIBRARY_IMPL(resnet_min, CUDA, m) { m.impl("crop_flip", &crop_flip); }

}  // namespace resnet_min

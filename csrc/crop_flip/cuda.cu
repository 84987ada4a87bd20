// Crop, flip and normalise a batch of images: the two steps of cpu.cpp, with the bytes in shared memory.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "crop_flip/cuda_kernel.h"
#include "crop_flip/op.h"

namespace resnet_min {
namespace {

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
    const auto run = table.element_size() == 2   ? launch<uint16_t>
                     : table.element_size() == 4 ? launch<uint32_t>
                                                 : launch<uint64_t>;
    run(images, index.contiguous(), offset.contiguous(), flip.contiguous(), table.contiguous(), out,
        geometry_of(images, padding));
  }
  return out.permute({0, 3, 1, 2});  // channels_last
}

}  // namespace

TORCH_LIBRARY_IMPL(resnet_min, CUDA, m) { m.impl("crop_flip", &crop_flip); }

}  // namespace resnet_min

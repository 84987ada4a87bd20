// Crop, flip and normalise a batch of images: the two steps of cpu.cpp, with the bytes in shared memory.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "crop_flip/cuda_launch.h"
#include "crop_flip/op.h"

namespace resnet_min {
namespace {

at::Tensor crop_flip(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset,
                     const at::Tensor& flip, const at::Tensor& table, int64_t padding) {
  check_crop_flip(images, index, offset, flip, table, padding);
  const c10::cuda::CUDAGuard guard(images.device());
  at::Tensor out = at::empty({index.size(0), images.size(1), images.size(2), 3}, table.options());
  if (out.numel() > 0) {
    const Geometry geometry = geometry_of(images.sizes().data(), images.strides().data(), padding);
    const int64_t blocks = index.size(0) * geometry.tiles;
    TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int32_t>::max(), "crop_flip: the batch has too many pixels; got ",
                      out.sizes());
    const at::Tensor indices = index.contiguous(), offsets = offset.contiguous(), flips = flip.contiguous();
    const at::Tensor entries = table.contiguous();
    const CropFlip call{images.const_data_ptr<uint8_t>(),
                        indices.const_data_ptr<int64_t>(),
                        offsets.const_data_ptr<int64_t>(),
                        flips.const_data_ptr<bool>(),
                        entries.const_data_ptr(),
                        out.mutable_data_ptr(),
                        geometry};
    C10_CUDA_CHECK(
        launch_crop_flip(call, table.element_size(), static_cast<int>(blocks), c10::cuda::getCurrentCUDAStream()));
  }
  return out.permute({0, 3, 1, 2});  // channels_last
}

}  // namespace

TORCH_LIBRARY_IMPL(resnet_min, CUDA, m) { m.impl("crop_flip", &crop_flip); }

}  // namespace resnet_min

// The CUDA kernel of crop_flip, compiled as C++ and run on the CPU: see cuda_on_cpu.h.
#include <torch/extension.h>

#include "cuda_on_cpu.h"
// After the above, which stands in for what nvcc knows.
#include "crop_flip/cuda_kernel.h"
#include "crop_flip/op.h"

namespace {

using namespace resnet_min;

template <typename T>
void run(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset, const at::Tensor& flip,
         const at::Tensor& table, const at::Tensor& out, const Geometry& geometry) {
  cuda_on_cpu::launch(static_cast<unsigned>(index.size(0) * geometry.tiles), kThreads, [&] {
    crop_flip_kernel<T>(images.const_data_ptr<uint8_t>(), index.const_data_ptr<int64_t>(),
                        offset.const_data_ptr<int64_t>(), flip.const_data_ptr<bool>(),
                        static_cast<const T*>(table.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
                        geometry);
  });
}

at::Tensor crop_flip(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset,
                     const at::Tensor& flip, const at::Tensor& table, int64_t padding) {
  check_crop_flip(images, index, offset, flip, table, padding);
  at::Tensor out = at::empty({index.size(0), images.size(1), images.size(2), 3}, table.options());
  const auto run_as = table.element_size() == 2   ? run<uint16_t>
                      : table.element_size() == 4 ? run<uint32_t>
                                                  : run<uint64_t>;
  run_as(images, index, offset, flip, table, out, geometry_of(images.sizes().data(), images.strides().data(), padding));
  return out.permute({0, 3, 1, 2});
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("crop_flip", &crop_flip); }

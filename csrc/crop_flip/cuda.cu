// The launch of crop_flip's kernel; cuda_host.cpp has what comes before.
#include "crop_flip/cuda_kernel.h"
#include "crop_flip/cuda_launch.h"

namespace resnet_min {
namespace {

template <typename T>
void crop_flip_on(cudaStream_t stream, const CropFlip& call, int blocks) {
  crop_flip_kernel<T><<<blocks, kThreads, 0, stream>>>(call.images, call.index, call.offset, call.flip,
                                                       static_cast<const T*>(call.table), static_cast<T*>(call.out),
                                                       call.geometry);
}

}  // namespace

cudaError_t launch_crop_flip(const CropFlip& call, size_t entry_size, int blocks, cudaStream_t stream) {
  const auto run = entry_size == 2   ? crop_flip_on<uint16_t>
                   : entry_size == 4 ? crop_flip_on<uint32_t>
                                     : crop_flip_on<uint64_t>;
  run(stream, call, blocks);
  return cudaGetLastError();
}

}  // namespace resnet_min

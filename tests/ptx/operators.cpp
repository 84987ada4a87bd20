// The host's part of the CUDA operators as it is in csrc, on tensors of the CPU whose memory the interpreter knows:
// what cuda_host.cpp registers for CUDA becomes the operators of resnet_min_ptx, whose schemas Python has defined.
#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, device, m) TORCH_LIBRARY_FRAGMENT(resnet_min_ptx, m)
// After the above, which says what their operators become.
#include "bn_add_relu/cuda_host.cpp"
#include "conv_bn_relu/cuda_host.cpp"
#include "crop_flip/cuda_host.cpp"

extern "C" {
void ptx_allocated(const void* begin, size_t bytes);
void ptx_freed(const void* begin);
}

namespace {

void release(void* begin) {
  ptx_freed(begin);
  std::free(begin);
}

// Fresh memory is NaN. Allocations are not adjacent, so that what is beyond one is not in the next.
struct KnownMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* begin = bytes ? std::aligned_alloc(64, (bytes + 127) / 64 * 64) : nullptr;
    if (begin) {
      std::memset(begin, 0xff, bytes);
      ptx_allocated(begin, bytes);
    }
    return {begin, begin, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

KnownMemory known_memory;
c10::Allocator* usual = nullptr;

}  // namespace

// From here on tensors are in memory that the interpreter knows; or in the usual one again.
extern "C" void ptx_allocate(bool known) {
  if (!usual) usual = c10::GetAllocator(c10::kCPU);
  c10::SetAllocator(c10::kCPU, known ? &known_memory : usual, 255);
}

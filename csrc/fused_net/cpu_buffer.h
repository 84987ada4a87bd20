// Memory for floats: zeros, on large pages where the system has some, for a net's weights and maps are read from end to
// end and with pages of 4 KiB the processor looks for the next one most of the time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace resnet_min {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t floats) {
    constexpr size_t kLine = 64, kPage = 2 << 20;
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float), unit = bytes < kPage ? kLine : kPage;
    const size_t whole = (bytes / unit + 1) * unit;
    memory_.reset(static_cast<float*>(std::aligned_alloc(unit, whole)));
    if (memory_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (unit == kPage) madvise(memory_.get(), whole, MADV_HUGEPAGE);
#endif
    std::memset(memory_.get(), 0, whole);
  }

  float* data() const { return memory_.get(); }
  explicit operator bool() const { return memory_ != nullptr; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
};

}  // namespace resnet_min

// csrc/tensor_core.h for a CPU. Copies are made as late as the hardware may make them, when they are waited for,
// and their place holds NaN until then. Fragments are laid out as in the PTX manual's "Matrix Fragments for
// mma.m16n8k16 with floating point type".
#pragma once

#include <cstring>
#include <deque>
#include <vector>

#include "tensor_core.h"
#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

struct Copy {
  uint32_t shared;
  const char* source;  // null for zeros
};

struct Range {
  const char *begin, *end;
};

alignas(128) inline unsigned char shared_memory[256 << 10];
inline std::deque<std::vector<Copy>> copies[1024];  // of a thread, by group; the last one is open
inline std::vector<Range> readable;                 // where copies may come from
// Copies from elsewhere or of no 16-byte alignment; rows that are read at once from one bank.
inline int64_t bad_copies, bank_conflicts;

inline void start_copy(uint32_t shared, const void* source, bool copy) {
  const char* begin = static_cast<const char*>(source);
  bool ok = shared % 16 == 0 && reinterpret_cast<uintptr_t>(begin) % 16 == 0, inside = false;
  for (const Range& range : readable) inside |= range.begin <= begin && begin + 16 <= range.end;
  if (!(ok && inside)) {
    ++bad_copies;
    copy = false;
  }
  std::memset(shared_memory + shared, 0xff, 16);
  auto& groups = copies[thread_index.x];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({shared, copy ? begin : nullptr});
}

inline void finish_copies(size_t pending) {
  auto& groups = copies[thread_index.x];
  for (; groups.size() > pending + 1; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      if (copy.source) std::memcpy(shared_memory + copy.shared, copy.source, 16);
      if (!copy.source) std::memset(shared_memory + copy.shared, 0, 16);
    }
  }
}

// Element 0 or 1 of a register that holds two.
template <typename T>
float element(uint32_t pair, int index) {
  return static_cast<float>(T(static_cast<uint16_t>(pair >> 16 * index), T::from_bits()));
}

}  // namespace cuda_on_cpu

namespace resnet_min {

inline void copy_through_l1(uint32_t shared, const void* source, bool copy) {
  cuda_on_cpu::start_copy(shared, source, copy);
}

inline void copy_past_l1(uint32_t shared, const void* source, bool copy) {
  cuda_on_cpu::start_copy(shared, source, copy);
}

inline void commit_copies() { cuda_on_cpu::copies[cuda_on_cpu::thread_index.x].emplace_back(); }

template <int kPending>
void wait_for_copies() {
  cuda_on_cpu::finish_copies(kPending);
}

inline void load_matrices(uint32_t (&matrices)[4], uint32_t row) {
  const auto* warp = cuda_on_cpu::exchange({{row}});
  const int lane = cuda_on_cpu::thread_index.x % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint32_t address = warp[8 * matrix + lane / 4].at[0] + 4 * (lane % 4);
    std::memcpy(&matrices[matrix], cuda_on_cpu::shared_memory + address, 4);
  }
  for (int other = lane / 8 * 8; other < lane; ++other) {
    cuda_on_cpu::bank_conflicts += warp[other].at[0] / 16 % 8 == row / 16 % 8;
  }
}

template <typename T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto* warp = cuda_on_cpu::exchange({{a[0], a[1], a[2], a[3], b0, b1}});
  const int lane = cuda_on_cpu::thread_index.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t left = warp[row % 8 * 4 + k % 8 / 2].at[row / 8 + k / 8 * 2];
      const uint32_t right = warp[column * 4 + k % 8 / 2].at[4 + k / 8];
      sum[i] += cuda_on_cpu::element<T>(left, k % 2) * cuda_on_cpu::element<T>(right, k % 2);
    }
  }
}

}  // namespace resnet_min

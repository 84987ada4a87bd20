// Memory that knows what a sanitizer does: who may access which bytes, and who has. What is wrong with an access comes
// back as words; null: nothing is.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// What was wrong, in all launches since it was last asked.
struct Faults {
  uint64_t count = 0;
  std::vector<std::string> first;  // a few

  void add(const std::string& fault) {
    if (++count <= 5) first.push_back(fault);
  }
};

// The tensors' own memory. Beyond bounds and alignment: in one launch a byte is written by one thread, and read by no
// other, since blocks run in any order; what was written is not read as if it were constant.
class GlobalMemory {
 public:
  void add(const void* begin, size_t bytes) { allocations_[reinterpret_cast<uintptr_t>(begin)] = {bytes, {}}; }
  void remove(const void* begin) { allocations_.erase(reinterpret_cast<uintptr_t>(begin)); }

  void begin_launch() {
    for (auto& [begin, allocation] : allocations_) allocation.writer.clear();
  }

  // `thread` counts from 1 through the grid.
  const char* read(uint64_t at, uint32_t bytes, uint32_t thread, bool constant) {
    Allocation* allocation;
    if (const char* fault = find(at, bytes, allocation)) return fault;
    if (allocation->writer.empty()) return nullptr;
    for (uint64_t byte = at - begin_; byte < at - begin_ + bytes; ++byte) {
      const uint32_t writer = allocation->writer[byte];
      if (writer && (constant || writer != thread)) return "reads what a thread of this launch writes";
    }
    return nullptr;
  }

  const char* write(uint64_t at, uint32_t bytes, uint32_t thread) {
    Allocation* allocation;
    if (const char* fault = find(at, bytes, allocation)) return fault;
    if (allocation->writer.empty()) allocation->writer.resize(allocation->bytes);
    for (uint64_t byte = at - begin_; byte < at - begin_ + bytes; ++byte) {
      uint32_t& writer = allocation->writer[byte];
      if (writer && writer != thread) return "writes what another thread has written";
      writer = thread;
    }
    return nullptr;
  }

 private:
  struct Allocation {
    size_t bytes;
    std::vector<uint32_t> writer;  // of each byte in this launch, 0 for none; empty where nobody has written
  };
  std::map<uintptr_t, Allocation> allocations_;
  uintptr_t begin_ = 0;  // of the allocation that was found

  const char* find(uint64_t at, uint32_t bytes, Allocation*& allocation) {
    if (at % bytes) return "misaligned";
    auto found = allocations_.upper_bound(at);
    if (found == allocations_.begin()) return "out of bounds";
    --found;
    if (at + bytes > found->first + found->second.bytes) return "out of bounds";
    begin_ = found->first;
    allocation = &found->second;
    return nullptr;
  }
};

// A block's shared memory. Between two barriers a byte that a thread writes is no other thread's to read or to write;
// an asynchronous copy writes from its beginning on, and its bytes are nobody's until its thread has waited for it.
class SharedMemory {
 public:
  explicit SharedMemory(uint32_t bytes) : data_(bytes, static_cast<char>(0xff)), bytes_(bytes) {}

  char* data(uint32_t at) { return &data_[at - kShared]; }
  void barrier() { ++interval_; }

  const char* read(uint32_t at, uint32_t bytes, int thread) {
    if (const char* fault = find(at, bytes)) return fault;
    for (uint32_t i = at - kShared; i < at - kShared + bytes; ++i) {
      Byte& byte = bytes_[i];
      if (byte.copier >= 0) return "reads what a copy under way will write";
      if (byte.writer < 0) return "reads what nobody has written";
      if (byte.written == interval_ && byte.writer != thread)
        return "reads what another thread writes, no barrier between";
      byte.several = byte.read == interval_ && (byte.several || byte.reader != thread);
      byte.read = interval_;
      byte.reader = thread;
    }
    return nullptr;
  }

  const char* write(uint32_t at, uint32_t bytes, int thread) {
    if (const char* fault = find(at, bytes)) return fault;
    for (uint32_t i = at - kShared; i < at - kShared + bytes; ++i) {
      Byte& byte = bytes_[i];
      if (byte.copier >= 0) return "writes where a copy under way does";
      if (byte.written == interval_ && byte.writer != thread)
        return "writes where another thread does, no barrier between";
      if (byte.read == interval_ && (byte.several || byte.reader != thread)) {
        return "writes what another thread reads, no barrier between";
      }
      byte.written = interval_;
      byte.writer = thread;
    }
    return nullptr;
  }

  const char* begin_copy(uint32_t at, uint32_t bytes, int thread) {
    if (const char* fault = write(at, bytes, thread)) return fault;
    for (uint32_t i = 0; i < bytes; ++i) bytes_[at - kShared + i].copier = thread;
    return nullptr;
  }

  void end_copy(uint32_t at, uint32_t bytes, int thread) {
    for (uint32_t i = 0; i < bytes; ++i) {
      Byte& byte = bytes_[at - kShared + i];
      byte.copier = -1;
      byte.written = interval_;
      byte.writer = thread;
    }
  }

 private:
  struct Byte {
    uint32_t written = 0, read = 0;  // in which interval last
    int writer = -1, reader = -1, copier = -1;
    bool several = false;  // of `read`, by more than one thread
  };
  std::vector<char> data_;
  std::vector<Byte> bytes_;
  uint32_t interval_ = 1;

  const char* find(uint32_t at, uint32_t bytes) const {
    if (at % bytes) return "misaligned in shared memory";
    if (at < kShared || at - kShared + bytes > data_.size()) return "out of shared memory's bounds";
    return nullptr;
  }
};

}  // namespace ptx

// The instructions of csrc/tensor_core.h: copies that go on behind the threads' backs, and what a whole warp does
// together. Fragments are laid out as in the PTX manual's "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once

#include <string>
#include <unordered_map>

#include "values.h"
#include "warp.h"

namespace ptx {

constexpr uint32_t kCopyBytes = 16;

inline void land(Warp& warp, const Copy& copy) {
  if (copy.source) std::memcpy(warp.block.shared.data(copy.to), copy.source, kCopyBytes);
  if (!copy.source) std::memset(warp.block.shared.data(copy.to), 0, kCopyBytes);
}

// cp.async [to], [source], 16, size: 16 bytes, or zeros where size is 0. Until it lands its place holds NaN.
inline void begin_copy(Warp& warp, const Instruction& instruction) {
  Launch& launch = warp.block.launch;
  for_each_lane(warp, [&](int lane) {
    const auto to = static_cast<uint32_t>(warp.address(instruction.from[0], lane));
    const uint64_t source = warp.address(instruction.from[1], lane);
    const uint64_t size = instruction.from.size() > 3 ? warp.value(instruction.from[3], lane) : kCopyBytes;
    const char* fault = size != 0 && size != kCopyBytes ? "a copy of another size" : nullptr;
    if (!fault && source % kCopyBytes) fault = "misaligned";
    if (!fault && size) fault = launch.global.read(source, kCopyBytes, warp.thread_of_grid(lane), false);
    if (!fault) fault = warp.block.shared.begin_copy(to, kCopyBytes, warp.thread(lane));
    if (!warp.check(fault, lane, instruction)) return;
    const Copy copy{to, size ? reinterpret_cast<const char*>(source) : nullptr};
    std::memset(warp.block.shared.data(to), 0xff, kCopyBytes);
    if (launch.options.early_copies) land(warp, copy);
    warp.copies[lane].back().push_back(copy);
  });
}

inline void commit_copies(Warp& warp, const Instruction&) {
  for_each_lane(warp, [&](int lane) { warp.copies[lane].emplace_back(); });
}

// For all but the latest groups, as many as the operand says.
inline void wait_for_copies(Warp& warp, const Instruction& instruction) {
  for_each_lane(warp, [&](int lane) {
    auto& groups = warp.copies[lane];
    const uint64_t pending = warp.value(instruction.from[0], lane);
    for (; groups.size() > pending + 1; groups.pop_front()) {
      for (const Copy& copy : groups.front()) {
        if (!warp.block.launch.options.early_copies) land(warp, copy);
        warp.block.shared.end_copy(copy.to, kCopyBytes, warp.thread(lane));
      }
    }
  });
}

inline void need_all_lanes(const Warp& warp) {
  if (warp.active != ~0u) throw std::runtime_error("an instruction of the whole warp, and not all lanes are at it");
}

// Lane l names row l % 8 of matrix l / 8, 16 bytes, and gets elements 2 * (l % 4) and the next of row l / 4 of each.
// Eight rows are read at once, which takes one turn where they lie in different 16-byte banks.
inline void load_matrices(Warp& warp, const Instruction& instruction) {
  need_all_lanes(warp);
  uint32_t rows[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    rows[lane] = static_cast<uint32_t>(warp.address(instruction.from[0], lane));
    const char* fault = rows[lane] % 16 ? "misaligned in shared memory" : nullptr;
    for (int other = lane / 8 * 8; other < lane && !fault; ++other) {
      if (rows[other] / 16 % 8 == rows[lane] / 16 % 8) fault = "two rows of a matrix in one bank";
    }
    if (!warp.check(fault, lane, instruction)) return;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint32_t at = rows[8 * matrix + lane / 4] + 4 * (lane % 4);
      if (!warp.check(warp.block.shared.read(at, 4, warp.thread(lane)), lane, instruction)) return;
      uint32_t pair;
      std::memcpy(&pair, warp.block.shared.data(at), 4);
      warp.registers[instruction.to[matrix]][lane] = pair;
    }
  }
}

// d [16, 8] = a [16, 16] @ b [16, 8] + c. In float32, one product after another; the hardware's order and rounding of
// a sum are its own.
template <typename T>
void multiply(Warp& warp, const Instruction& instruction) {
  need_all_lanes(warp);
  const auto from = [&](int operand, int lane) { return warp.value(instruction.from[operand], lane); };
  const auto element = [&](int operand, int lane, int k) { return to_float(as<T>(from(operand, lane) >> 16 * k)); };
  float a[16][16], b[8][16];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int k = 0; k < 2; ++k) {
      const int row = lane / 4, depth = lane % 4 * 2 + k;
      a[row][depth] = element(0, lane, k);
      a[row + 8][depth] = element(1, lane, k);
      a[row][depth + 8] = element(2, lane, k);
      a[row + 8][depth + 8] = element(3, lane, k);
      b[row][depth] = element(4, lane, k);
      b[row][depth + 8] = element(5, lane, k);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float sums[4];
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      sums[i] = as<float>(from(6 + i, lane));
      for (int k = 0; k < 16; ++k) sums[i] += a[row][k] * b[column][k];
    }
    for (int i = 0; i < 4; ++i) warp.registers[instruction.to[i]][lane] = bits_of(sums[i]);
  }
}

inline void add_tensor_core(std::unordered_map<std::string, Opcode>& table) {
  table["cp.async.ca.shared.global"] = table["cp.async.cg.shared.global"] = {begin_copy, Flow::kNext, false};
  table["cp.async.commit_group"] = {commit_copies, Flow::kNext, false};
  table["cp.async.wait_group"] = {wait_for_copies, Flow::kNext, false};
  table["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = {load_matrices};
  table["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = {multiply<BFloat16>};
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = {multiply<Half>};
}

}  // namespace ptx

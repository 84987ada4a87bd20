// How a grid runs: blocks one after the other; of a block, between two barriers, warps one after the other; of a warp,
// those lanes together that are at the same instruction, the ones furthest behind first, as a GPU would.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

constexpr int kLanes = 32;

struct Options {
  unsigned order = 0;  // of blocks and of warps: 0 first to last, 1 last to first, more: a seed to shuffle them by
  bool early_copies = false;  // asynchronous copies are made when they begin; otherwise when they are waited for
  uint64_t most_instructions = 4'000'000'000;  // of lanes, in a launch
};

// What the launch of a kernel has beside its code.
struct Launch {
  Kernel& kernel;
  unsigned grid, block;
  uint32_t dynamic_shared;
  std::vector<char> parameters;
  GlobalMemory& global;
  Faults& faults;
  const Options& options;
  uint64_t instructions = 0;  // of lanes
};

struct Block {
  Launch& launch;
  unsigned index;
  SharedMemory shared;
};

struct Copy {
  uint32_t to;
  const char* source;  // null for zeros
};

struct Warp {
  Block& block;
  int first_thread;  // of the block
  std::vector<std::array<uint64_t, kLanes>> registers;
  std::array<int, kLanes> at = {};                           // the instruction that is a lane's next
  uint32_t running, waiting = 0;                             // lanes that have not ended, that are at the barrier
  uint32_t active = 0;                                       // lanes that the present instruction is for
  std::array<std::deque<std::vector<Copy>>, kLanes> copies;  // by group; the last one is open

  Warp(Block& block, int first_thread) : block(block), first_thread(first_thread) {
    const Launch& launch = block.launch;
    const Kernel& kernel = launch.kernel;
    const int lanes = std::min(kLanes, static_cast<int>(launch.block) - first_thread);
    running = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    registers.resize(kernel.registers);
    for (auto& lanes_of : registers) lanes_of.fill(0x7ff4dead7fa0dead);  // NaN of whatever type
    for (const auto& [value, reg] : kernel.constants) registers[reg].fill(value);
    std::iota(registers[kernel.special[0]].begin(), registers[kernel.special[0]].end(), first_thread);
    registers[kernel.special[1]].fill(block.index);
    registers[kernel.special[2]].fill(launch.block);
    registers[kernel.special[3]].fill(launch.grid);
    for (auto& groups : copies) groups.resize(1);
  }

  int thread(int lane) const { return first_thread + lane; }
  uint32_t thread_of_grid(int lane) const { return block.index * block.launch.block + thread(lane) + 1; }
  uint64_t value(const Operand& operand, int lane) const { return registers[operand.reg][lane]; }
  uint64_t address(const Operand& operand, int lane) const {
    return registers[operand.reg][lane] + static_cast<uint64_t>(operand.displacement);
  }

  // Whether nothing is wrong; otherwise it is written down.
  bool check(const char* fault, int lane, const Instruction& instruction) {
    if (!fault) return true;
    const Launch& launch = block.launch;
    launch.faults.add(launch.kernel.name + ": block " + std::to_string(block.index) + ", thread " +
                      std::to_string(thread(lane)) + ": " + fault + ": " + instruction.text);
    return false;
  }

  // Runs until every lane is at a barrier or has ended.
  void run() {
    while (const uint32_t together = furthest_behind()) run_together(together);
  }

 private:
  uint32_t furthest_behind() const {
    int least = std::numeric_limits<int>::max();
    uint32_t lanes = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!((running & ~waiting) >> lane & 1) || at[lane] > least) continue;
      if (at[lane] < least) lanes = 0;
      least = at[lane];
      lanes |= 1u << lane;
    }
    return lanes;
  }

  void set(uint32_t lanes, int next) {
    for (; lanes; lanes &= lanes - 1) at[std::countr_zero(lanes)] = next;
  }

  // Runs lanes that are at the same instruction until they part, meet others, wait or end.
  void run_together(uint32_t lanes) {
    Launch& launch = block.launch;
    int next = at[std::countr_zero(lanes)], others = std::numeric_limits<int>::max();
    for (uint32_t rest = running & ~waiting & ~lanes; rest; rest &= rest - 1) {
      others = std::min(others, at[std::countr_zero(rest)]);
    }
    while (next < others) {
      Instruction& instruction = launch.kernel.code.at(next);
      active = lanes;
      if (instruction.predicate >= 0) {
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
          const int lane = std::countr_zero(rest);
          if ((registers[instruction.predicate][lane] & 1) == instruction.unless) active &= ~(1u << lane);
        }
      }
      launch.instructions += std::popcount(lanes);
      if (launch.instructions > launch.options.most_instructions) throw std::runtime_error("runs without an end");
      ++next;
      if (!active) continue;
      instruction.executed = true;
      if (instruction.opcode.run) instruction.opcode.run(*this, instruction);
      if (instruction.opcode.flow == Flow::kNext) continue;
      set(lanes, next);
      if (instruction.opcode.flow == Flow::kBranch) set(active, instruction.target);
      if (instruction.opcode.flow == Flow::kBarrier) waiting |= active;
      if (instruction.opcode.flow == Flow::kExit) running &= ~active;
      if (instruction.opcode.flow != Flow::kBranch || active != lanes) return;
      next = instruction.target;
    }
    set(lanes, next);
  }
};

inline void run_block(Launch& launch, unsigned index, const std::vector<int>& order) {
  Block block{launch, index, SharedMemory(launch.kernel.shared_bytes + launch.dynamic_shared)};
  std::vector<Warp> warps;
  for (size_t warp = 0; warp < order.size(); ++warp) warps.emplace_back(block, static_cast<int>(warp) * kLanes);
  for (bool unfinished = true; unfinished; block.shared.barrier()) {
    unfinished = false;
    bool ended = false;
    std::vector<int> barriers;  // the instructions that threads wait behind
    for (int warp : order) warps[warp].run();
    for (Warp& warp : warps) {
      ended |= warp.running != warp.waiting;
      for (uint32_t rest = warp.waiting; rest; rest &= rest - 1) barriers.push_back(warp.at[std::countr_zero(rest)]);
      ended |= std::popcount(warp.waiting) != std::min(kLanes, static_cast<int>(launch.block) - warp.first_thread);
      unfinished |= warp.waiting != 0;
      warp.waiting = 0;
    }
    const bool same = std::equal(barriers.begin() + !barriers.empty(), barriers.end(), barriers.begin());
    if (unfinished && (ended || !same)) {
      launch.faults.add(launch.kernel.name + ": block " + std::to_string(index) + ": not all threads reach a barrier");
    }
  }
  for (Warp& warp : warps) {
    for (auto& groups : warp.copies) {
      const bool under_way = std::any_of(groups.begin(), groups.end(), [](auto& group) { return !group.empty(); });
      if (under_way) return launch.faults.add(launch.kernel.name + ": ends with copies under way");
    }
  }
}

inline void run(Launch& launch) {
  std::vector<unsigned> blocks(launch.grid);
  std::vector<int> warps((launch.block + kLanes - 1) / kLanes);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::iota(warps.begin(), warps.end(), 0);
  std::mt19937 draw(launch.options.order);
  if (launch.options.order == 1) {
    std::reverse(blocks.begin(), blocks.end());
    std::reverse(warps.begin(), warps.end());
  }
  if (launch.options.order > 1) std::shuffle(blocks.begin(), blocks.end(), draw);
  launch.global.begin_launch();
  for (unsigned block : blocks) {
    if (launch.options.order > 1) std::shuffle(warps.begin(), warps.end(), draw);
    run_block(launch, block, warps);
    if (launch.faults.count > 100) return;
  }
}

}  // namespace ptx

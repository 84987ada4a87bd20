// Just enough of CUDA to run a kernel on a CPU, for tests on machines without a GPU: blocks one after the other, the
// threads of a block as coroutines that change over at barriers. Between two barriers warps run one after the other,
// the first to the end, and so do a warp's threads between two instructions of the whole warp, so that a missing
// barrier shows as a wrong result.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time: what its threads share is what the process has

namespace cuda_on_cpu {

struct Index {
  unsigned x;
};

inline Index thread_index, block_index;
inline ucontext_t scheduler;
inline std::vector<ucontext_t> threads;
inline std::vector<bool> done, at_barrier;
inline const std::function<void()>* kernel;

inline void enter() {
  (*kernel)();
  done[thread_index.x] = true;  // and on to uc_link, the scheduler
}

inline void warp_barrier() { swapcontext(&threads[thread_index.x], &scheduler); }

inline void barrier() {
  at_barrier[thread_index.x] = true;
  warp_barrier();
}

// call: the kernel with its arguments.
inline void launch(unsigned grid, unsigned block, const std::function<void()>& call) {
  constexpr size_t kStack = 64 << 10;
  constexpr unsigned kWarp = 32;
  const std::unique_ptr<char[]> stacks(new char[block * kStack]);
  kernel = &call;
  for (block_index.x = 0; block_index.x < grid; ++block_index.x) {
    threads.assign(block, {});
    done.assign(block, false);
    for (unsigned t = 0; t < block; ++t) {
      getcontext(&threads[t]);
      threads[t].uc_stack.ss_sp = stacks.get() + t * kStack;
      threads[t].uc_stack.ss_size = kStack;
      threads[t].uc_link = &scheduler;
      makecontext(&threads[t], enter, 0);
    }
    for (bool unfinished = true; unfinished;) {
      unfinished = false;
      at_barrier.assign(block, false);
      for (unsigned warp = 0; warp < block; warp += kWarp) {
        for (bool running = true; running;) {
          running = false;
          for (unsigned t = warp; t < block && t < warp + kWarp; ++t) {
            if (done[t] || at_barrier[t]) continue;
            thread_index.x = t;
            swapcontext(&scheduler, &threads[t]);
            running = unfinished = true;
          }
        }
      }
    }
  }
}

// What an instruction of the whole warp takes from each of its threads. An exchange leaves the one before it alone,
// for there are threads that have yet to read that one.
struct Registers {
  uint32_t at[8];
};

// Those of the warp's 32 threads.
inline const Registers* exchange(const Registers& mine) {
  static Registers given[2][1024];
  static unsigned count[1024];
  Registers* round = given[count[thread_index.x]++ % 2];
  round[thread_index.x] = mine;
  warp_barrier();
  return round + thread_index.x / 32 * 32;
}

}  // namespace cuda_on_cpu

#define threadIdx cuda_on_cpu::thread_index
#define blockIdx cuda_on_cpu::block_index
#define __syncthreads cuda_on_cpu::barrier

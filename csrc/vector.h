// What the vectorised CPU kernels share: the compiler's vector types, and loops for each instruction set.
//
// A kernel's loops are in its cpu_loops.h, which has no include guard. Where RESNET_MIN_LOOPS names that file, this one
// includes it once for each instruction set, in a namespace with kBytes, the size of a vector, and RESNET_MIN_TARGET,
// the attribute that lets the compiler use those instructions (RESNET_MIN_BF16: they round to bfloat16):
//
//   #include "vector.h"
//   …                                        // what the loops take
//   #define RESNET_MIN_LOOPS "NAME/cpu_loops.h"
//   #include "vector.h"
//
// RESNET_MIN_CHOSEN(name) is then those namespaces' `name` for this processor.
#ifndef RESNET_MIN_VECTOR_H
#define RESNET_MIN_VECTOR_H

#include <ATen/Version.h>

#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__)
#define RESNET_MIN_CHOSEN(...)                                                 \
  (instruction_set() == InstructionSet::kAvx512Bf16 ? avx512_bf16::__VA_ARGS__ \
   : instruction_set() == InstructionSet::kAvx512   ? avx512::__VA_ARGS__      \
   : instruction_set() == InstructionSet::kAvx2     ? avx2::__VA_ARGS__        \
                                                    : portable::__VA_ARGS__)
#else
#define RESNET_MIN_CHOSEN(...) (portable::__VA_ARGS__)
#endif

namespace resnet_min {

// GCC's and Clang's own: a compiler keeps sums in registers that it does not keep there as arrays.
template <typename T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <typename T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// Asks torch, so that ATEN_CPU_CAPABILITY=default or avx2 limits ours as it does torch's own vector code.
inline InstructionSet instruction_set() {
#if defined(__x86_64__)
  static const InstructionSet found = [] {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") {
      return __builtin_cpu_supports("avx512bf16") ? InstructionSet::kAvx512Bf16 : InstructionSet::kAvx512;
    }
    return capability == "AVX2" ? InstructionSet::kAvx2 : InstructionSet::kPortable;
  }();
  return found;
#else
  return InstructionSet::kPortable;
#endif
}

}  // namespace resnet_min

#endif  // RESNET_MIN_VECTOR_H

#ifdef RESNET_MIN_LOOPS

namespace portable {
constexpr int kBytes = 16;
#define RESNET_MIN_TARGET
#include RESNET_MIN_LOOPS
#undef RESNET_MIN_TARGET
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
constexpr int kBytes = 32;
#define RESNET_MIN_TARGET __attribute__((target("avx2,fma")))
#include RESNET_MIN_LOOPS
#undef RESNET_MIN_TARGET
}  // namespace avx2

namespace avx512 {
constexpr int kBytes = 64;
#define RESNET_MIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))
#include RESNET_MIN_LOOPS
#undef RESNET_MIN_TARGET
}  // namespace avx512

namespace avx512_bf16 {
constexpr int kBytes = 64;
#define RESNET_MIN_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")))
#define RESNET_MIN_BF16
#include RESNET_MIN_LOOPS
#undef RESNET_MIN_BF16
#undef RESNET_MIN_TARGET
}  // namespace avx512_bf16
#endif

#undef RESNET_MIN_LOOPS
#endif

// What the vectorised CPU kernels share: the compiler's vector types, and which instructions this processor has.
//
// A kernel's loops are in a header of their own without an include guard. Its .cpp file includes them once for each
// instruction set, in a namespace with kBytes, the size of a vector, and with RESNET_MIN_TARGET, the attribute that
// lets the compiler use those instructions.
#pragma once

#include <ATen/Version.h>

#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RESNET_MIN_AVX2 __attribute__((target("avx2,fma")))
#define RESNET_MIN_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))
#define RESNET_MIN_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")))

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
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return __builtin_cpu_supports("avx512bf16") ? InstructionSet::kAvx512Bf16 : InstructionSet::kAvx512;
  }
  if (capability == "AVX2") return InstructionSet::kAvx2;
#endif
  return InstructionSet::kPortable;
}

}  // namespace resnet_min

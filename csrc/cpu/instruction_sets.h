// What the vectorised CPU kernels share: the compiler's vector types, and which instructions this processor has.
//
// A kernel's loops are in a header of their own without an include guard, RESNET_MIN_LOOPS. each_instruction_set.h
// includes it once for each instruction set, in a namespace with kBytes, the size of a vector, and with
// RESNET_MIN_TARGET, the attribute that lets the compiler use those instructions (RESNET_MIN_BF16: they round to
// bfloat16). RESNET_MIN_CHOSEN(name) is the namespaces' `name` for this processor.
#pragma once

#include <ATen/Version.h>

#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__)
#define RESNET_MIN_CHOSEN(name)                                         \
  (instruction_set() == InstructionSet::kAvx512Bf16 ? avx512_bf16::name \
   : instruction_set() == InstructionSet::kAvx512   ? avx512::name      \
   : instruction_set() == InstructionSet::kAvx2     ? avx2::name        \
                                                    : portable::name)
#else
#define RESNET_MIN_CHOSEN(name) (portable::name)
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

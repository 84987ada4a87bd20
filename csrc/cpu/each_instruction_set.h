// Includes RESNET_MIN_LOOPS, a kernel's loops, for each instruction set: see instruction_sets.h. No include guard.

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

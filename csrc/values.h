// Loads and stores of vectors, of float32 or float64 for values that may be bfloat16. Part of a kernel's loops (see
// vector.h): no include guard.

// Loads `lanes` values of T and converts them to A.
template <typename A, int lanes, typename T>
RESNET_MIN_TARGET inline Vector<A, lanes> load(const T* from) {
#ifdef RESNET_MIN_BF16  // g++ 12 makes six instructions of this conversion, and warns about the unmasked one by mistake
  if constexpr (sizeof(T) == 2 && lanes == 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Vector<A, lanes>)((Vector<uint32_t, lanes>)_mm512_maskz_cvtepu16_epi32(0xffff, halves) << 16);
  }
#endif
  Vector<T, lanes> v;
  __builtin_memcpy(&v, from, sizeof v);
  if constexpr (std::is_same_v<A, T>) {
    return v;
  } else if constexpr (sizeof(T) == 2) {  // bfloat16: the upper half of a float
    return (Vector<A, lanes>)(__builtin_convertvector(v, Vector<uint32_t, lanes>) << 16);
  } else {
    return __builtin_convertvector(v, Vector<A, lanes>);
  }
}

// Rounds to T, to nearest even as torch does; a NaN stays one. The instruction for it makes zeros of subnormals.
template <int lanes, typename A, typename T>
RESNET_MIN_TARGET inline void store(Vector<A, lanes> v, T* to) {
  if constexpr (sizeof(T) < sizeof(A)) {
#ifdef RESNET_MIN_BF16
    if constexpr (lanes == 16) {
      const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
      __builtin_memcpy(to, &rounded, sizeof rounded);
      return;
    }
#endif
    const auto bits = (Vector<uint32_t, lanes>)v;
    const auto rounded = v == v ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
    const auto halves = __builtin_convertvector(rounded >> 16, Vector<uint16_t, lanes>);
    __builtin_memcpy(to, &halves, sizeof halves);
  } else {
    __builtin_memcpy(to, &v, sizeof v);
  }
}

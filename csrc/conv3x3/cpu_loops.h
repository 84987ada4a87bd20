// The loops of cpu.cpp (see vector.h): transforms of tiles, a vector of channels at a time, and
// products.

constexpr int kLanes = kBytes / sizeof(float);
using V = Vector<float, kLanes>;

RESNET_MIN_TARGET inline V load(const float* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

RESNET_MIN_TARGET inline void store(V v, float* to) { __builtin_memcpy(to, &v, sizeof v); }

// ---- transforms of four (or three, or two) values in a row; T[i][j] is done as rows, then columns ----

struct OfInput {  // B^T d
  static constexpr int from = 4, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&d)[4], V (&r)[4]) {
    r[0] = d[0] - d[2];
    r[1] = d[1] + d[2];
    r[2] = d[2] - d[1];
    r[3] = d[1] - d[3];
  }
};
struct OfOutput {  // A^T m
  static constexpr int from = 4, to = 2;
  RESNET_MIN_TARGET static inline void apply(const V (&m)[4], V (&r)[2]) {
    r[0] = m[0] + m[1] + m[2];
    r[1] = m[1] - m[2] - m[3];
  }
};
struct OfWeight {  // G w
  static constexpr int from = 3, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&w)[3], V (&r)[4]) {
    const V ends = (w[0] + w[2]) * 0.5f, middle = w[1] * 0.5f;
    r[0] = w[0];
    r[1] = ends + middle;
    r[2] = ends - middle;
    r[3] = w[2];
  }
};
struct OfOutputGradient {  // A g
  static constexpr int from = 2, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&g)[2], V (&r)[4]) {
    r[0] = g[0];
    r[1] = g[0] + g[1];
    r[2] = g[0] - g[1];
    r[3] = -g[1];
  }
};
struct OfWeightGradient {  // G^T u
  static constexpr int from = 4, to = 3;
  RESNET_MIN_TARGET static inline void apply(const V (&u)[4], V (&r)[3]) {
    const V sum = (u[1] + u[2]) * 0.5f;
    r[0] = u[0] + sum;
    r[1] = (u[1] - u[2]) * 0.5f;
    r[2] = sum + u[3];
  }
};

template <typename T>
RESNET_MIN_TARGET inline void both_ways(const V (&d)[T::from][T::from], V (&r)[T::to][T::to]) {
  V half[T::from][T::to];
#pragma GCC unroll 4
  for (int i = 0; i < T::from; ++i) T::apply(d[i], half[i]);
#pragma GCC unroll 4
  for (int j = 0; j < T::to; ++j) {
    V column[T::from], result[T::to];
#pragma GCC unroll 4
    for (int i = 0; i < T::from; ++i) column[i] = half[i][j];
    T::apply(column, result);
#pragma GCC unroll 4
    for (int i = 0; i < T::to; ++i) r[i][j] = result[i];
  }
}

// From the `channels` values at each pixel to those at each point, or from points to taps.
template <typename T>
RESNET_MIN_TARGET void transform(const float* const* from, float* to, int64_t stride, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    V d[T::from][T::from], r[T::to][T::to];
#pragma GCC unroll 16
    for (int i = 0; i < T::from * T::from; ++i) d[i / T::from][i % T::from] = load(from[i] + c);
    both_ways<T>(d, r);
#pragma GCC unroll 16
    for (int i = 0; i < T::to * T::to; ++i) store(r[i / T::to][i % T::to], to + i * stride + c);
  }
}

// From the points to the pixels of a tile of the output.
RESNET_MIN_TARGET void transform_output(const float* from, int64_t stride, float* const* pixels, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    V m[4][4], r[2][2];
#pragma GCC unroll 16
    for (int i = 0; i < kPoints; ++i) m[i / 4][i % 4] = load(from + i * stride + c);
    both_ways<OfOutput>(m, r);
    for (int i = 0; i < 4; ++i) {
      if (pixels[i] != nullptr) store(r[i / 2][i % 2], pixels[i] + c);
    }
  }
}

// ---- products: out[i][j] = (or +=) the sum over s of a[i][s] * b[s][j], for kSlab columns j ----

template <int rows, int vectors>
RESNET_MIN_TARGET inline void multiply_rows(const Product& p, const float* a, const float* b, float* out) {
  V sum[rows][vectors] = {};
  for (int64_t s = 0; s < p.terms; ++s, a += p.a_stride, b += p.b_stride) {
    V factor[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) factor[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const float each = a[i * p.a_row_stride];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += factor[j] * each;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* to = out + i * p.out_stride + j * kLanes;
      store(p.accumulate ? sum[i][j] + load(to) : sum[i][j], to);
    }
  }
}

RESNET_MIN_TARGET void multiply(const Product& p) {
  constexpr int vectors = kBytes == 64 ? 4 : 2;  // 6 rows of them, and what they are made from, fill the registers
  int64_t i = 0;
  const auto over_columns = [&](auto multiply_some) {
    for (int64_t j = 0; j < kSlab; j += vectors * kLanes) {
      multiply_some(p, p.a + i * p.a_row_stride, p.b + j, p.out + i * p.out_stride + j);
    }
  };
  for (; i + 6 <= p.rows; i += 6) over_columns(multiply_rows<6, vectors>);
  switch (p.rows - i) {
    case 5:
      return over_columns(multiply_rows<5, vectors>);
    case 4:
      return over_columns(multiply_rows<4, vectors>);
    case 3:
      return over_columns(multiply_rows<3, vectors>);
    case 2:
      return over_columns(multiply_rows<2, vectors>);
    case 1:
      return over_columns(multiply_rows<1, vectors>);
  }
}

constexpr Loops kLoops = {transform<OfInput>,          transform<OfWeight>, transform<OfOutputGradient>,
                          transform<OfWeightGradient>, transform_output,    multiply};

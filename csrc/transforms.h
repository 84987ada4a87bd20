// Winograd's transforms of values in a row (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
// 2016), of vectors of float32. Part of a kernel's loops (see vector.h): no include guard.

#include "values.h"

constexpr int kLanes = kBytes / sizeof(float);
using V = Vector<float, kLanes>;

template <typename T>
RESNET_MIN_TARGET inline V load(const T* from) {
  return load<float, kLanes>(from);
}

template <typename T>
RESNET_MIN_TARGET inline void store(V v, T* to) {
  store<kLanes, float>(v, to);
}

// ---- F(2, 3) ----

struct OfInput2 {  // B^T d
  static constexpr int from = 4, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&d)[4], V (&r)[4]) {
    r[0] = d[0] - d[2];
    r[1] = d[1] + d[2];
    r[2] = d[2] - d[1];
    r[3] = d[1] - d[3];
  }
};
struct OfOutput2 {  // A^T m
  static constexpr int from = 4, to = 2;
  RESNET_MIN_TARGET static inline void apply(const V (&m)[4], V (&r)[2]) {
    r[0] = m[0] + m[1] + m[2];
    r[1] = m[1] - m[2] - m[3];
  }
};
struct OfWeight2 {  // G w
  static constexpr int from = 3, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&w)[3], V (&r)[4]) {
    const V ends = (w[0] + w[2]) * 0.5f, middle = w[1] * 0.5f;
    r[0] = w[0];
    r[1] = ends + middle;
    r[2] = ends - middle;
    r[3] = w[2];
  }
};
struct OfOutputGradient2 {  // A g
  static constexpr int from = 2, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&g)[2], V (&r)[4]) {
    r[0] = g[0];
    r[1] = g[0] + g[1];
    r[2] = g[0] - g[1];
    r[3] = -g[1];
  }
};
struct OfWeightGradient2 {  // G^T u
  static constexpr int from = 4, to = 3;
  RESNET_MIN_TARGET static inline void apply(const V (&u)[4], V (&r)[3]) {
    const V sum = (u[1] + u[2]) * 0.5f;
    r[0] = u[0] + sum;
    r[1] = (u[1] - u[2]) * 0.5f;
    r[2] = sum + u[3];
  }
};

// ---- F(4, 3), at the points 0, ±a, ±b and infinity ----

// With 1 and 2, the usual ones, conv3x3's error is beyond what its test allows. fused_net/cpu_pack.h has them too.
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;
constexpr float kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2)), kOfZero = 1 / (kA2 * kB2);

struct OfInput4 {
  static constexpr int from = 6, to = 6;
  RESNET_MIN_TARGET static inline void apply(const V (&d)[6], V (&r)[6]) {
    const V even = d[4] - d[2] * kB2, odd = (d[3] - d[1] * kB2) * kA;
    const V far = d[4] - d[2] * kA2, near = (d[3] - d[1] * kA2) * kB;
    r[0] = d[0] * (kA2 * kB2) - d[2] * (kA2 + kB2) + d[4];
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = far + near;
    r[4] = far - near;
    r[5] = d[1] * (kA2 * kB2) - d[3] * (kA2 + kB2) + d[5];
  }
};
struct OfOutput4 {
  static constexpr int from = 6, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&m)[6], V (&r)[4]) {
    const V sum1 = m[1] + m[2], sum2 = m[3] + m[4], difference1 = m[1] - m[2], difference2 = m[3] - m[4];
    r[0] = m[0] + sum1 + sum2;
    r[1] = difference1 * kA + difference2 * kB;
    r[2] = sum1 * kA2 + sum2 * kB2;
    r[3] = difference1 * (kA2 * kA) + difference2 * (kB2 * kB) + m[5];
  }
};
struct OfWeight4 {
  static constexpr int from = 3, to = 6;
  RESNET_MIN_TARGET static inline void apply(const V (&w)[3], V (&r)[6]) {
    const V even_a = (w[0] + w[2] * kA2) * kOfA, odd_a = w[1] * (kA * kOfA);
    const V even_b = (w[0] + w[2] * kB2) * kOfB, odd_b = w[1] * (kB * kOfB);
    r[0] = w[0] * kOfZero;
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = w[2];
  }
};
struct OfOutputGradient4 {
  static constexpr int from = 4, to = 6;
  RESNET_MIN_TARGET static inline void apply(const V (&g)[4], V (&r)[6]) {
    const V even_a = g[0] + g[2] * kA2, odd_a = (g[1] + g[3] * kA2) * kA;
    const V even_b = g[0] + g[2] * kB2, odd_b = (g[1] + g[3] * kB2) * kB;
    r[0] = g[0];
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = g[3];
  }
};
struct OfWeightGradient4 {
  static constexpr int from = 6, to = 3;
  RESNET_MIN_TARGET static inline void apply(const V (&u)[6], V (&r)[3]) {
    const V sum_a = (u[1] + u[2]) * kOfA, sum_b = (u[3] + u[4]) * kOfB;
    r[0] = u[0] * kOfZero + sum_a + sum_b;
    r[1] = (u[1] - u[2]) * (kA * kOfA) + (u[3] - u[4]) * (kB * kOfB);
    r[2] = sum_a * kA2 + sum_b * kB2 + u[5];
  }
};

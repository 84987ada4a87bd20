// Winograd's transforms of values in a row (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
// 2016), of vectors of float32. Part of a kernel's loops (see vector.h): no include guard.

constexpr int kLanes = kBytes / sizeof(float);
using V = Vector<float, kLanes>;

RESNET_MIN_TARGET inline V load(const float* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

RESNET_MIN_TARGET inline void store(V v, float* to) { __builtin_memcpy(to, &v, sizeof v); }

// ---- F(2, 3) ----

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

// ---- F(4, 3) ----

struct OfInput4 {
  static constexpr int from = 6, to = 6;
  RESNET_MIN_TARGET static inline void apply(const V (&d)[6], V (&r)[6]) {
    const V even = d[4] - d[2] * 4.f, odd = d[3] - d[1] * 4.f, far = d[4] - d[2], near = (d[3] - d[1]) * 2.f;
    r[0] = d[0] * 4.f - d[2] * 5.f + d[4];
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = far + near;
    r[4] = far - near;
    r[5] = d[1] * 4.f - d[3] * 5.f + d[5];
  }
};
struct OfOutput4 {
  static constexpr int from = 6, to = 4;
  RESNET_MIN_TARGET static inline void apply(const V (&m)[6], V (&r)[4]) {
    const V sum1 = m[1] + m[2], sum2 = m[3] + m[4], difference1 = m[1] - m[2], difference2 = m[3] - m[4];
    r[0] = m[0] + sum1 + sum2;
    r[1] = difference1 + difference2 * 2.f;
    r[2] = sum1 + sum2 * 4.f;
    r[3] = difference1 + difference2 * 8.f + m[5];
  }
};

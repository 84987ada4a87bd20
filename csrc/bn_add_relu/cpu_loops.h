// The loops of cpu_passes.h over rows of adjacent columns (see vector.h).

#include "values.h"

// Loads of a map, and asks for what is two pages on: the processor itself looks no further than a page's end.
template <typename A, int lanes, typename T>
RESNET_MIN_TARGET inline Vector<A, lanes> stream(const T* from) {
  constexpr int kAhead = 8192;  // bytes
  if (lanes > 1) __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead, 0, 2);
  return load<A, lanes>(from);
}

// to += v
template <int lanes, typename S>
RESNET_MIN_TARGET inline void add(Vector<S, lanes> v, double* to) {
  Vector<double, lanes> sum;
  __builtin_memcpy(&sum, to, sizeof sum);
  sum += __builtin_convertvector(v, Vector<double, lanes>);
  __builtin_memcpy(to, &sum, sizeof sum);
}

// v where `by` is above 0 or NaN, otherwise 0.
template <typename V>
RESNET_MIN_TARGET inline V masked(V v, V by) {
  return by <= 0 ? V{} : v;
}

template <typename T, int lanes, int count>
RESNET_MIN_TARGET inline void tile(const Sums<T>& a, const Part& part, int64_t j) {
  using V = Vector<typename Types<T>::Sum, lanes>;
  V shift[count], sum[count], square[count];
  for (int i = 0; i < count; ++i) {
    shift[i] = load<typename Types<T>::Sum, lanes>(a.shift + j + i * lanes);
    sum[i] = square[i] = V{};
  }
  const T* x = a.x + part.first + j;
  for (int64_t r = 0; r < part.rows; ++r, x += part.stride) {
    for (int i = 0; i < count; ++i) {
      const V v = stream<typename Types<T>::Sum, lanes>(x + i * lanes) - shift[i];
      sum[i] += v;
      square[i] += v * v;
    }
  }
  for (int i = 0; i < count; ++i) {
    add<lanes, typename Types<T>::Sum>(sum[i], a.sums + j + i * lanes);
    add<lanes, typename Types<T>::Sum>(square[i], a.squares + j + i * lanes);
  }
}

template <typename T, int lanes, int count, Mask mask>
RESNET_MIN_TARGET inline void tile(const GradientSums<T>& a, const Part& part, int64_t j) {
  using A = typename Types<T>::Apply;
  using S = typename Types<T>::Sum;
  Vector<S, lanes> sum[count], product[count], mean[count];
  Vector<A, lanes> scale[count], shift[count];
  for (int i = 0; i < count; ++i) {
    sum[i] = product[i] = Vector<S, lanes>{};
    mean[i] = load<S, lanes>(a.mean + j + i * lanes);
    if (mask == Mask::kFromX) {
      scale[i] = load<A, lanes>(a.scale + j + i * lanes);
      shift[i] = load<A, lanes>(a.shift + j + i * lanes);
    }
  }
  int64_t at = part.first + j;
  for (int64_t r = 0; r < part.rows; ++r, at += part.stride) {
    for (int i = 0; i < count; ++i) {
      const auto x = stream<A, lanes>(a.x + at + i * lanes);
      auto grad = stream<A, lanes>(a.grad + at + i * lanes);
      if (mask == Mask::kFromX) grad = masked(grad, x * scale[i] + shift[i]);
      if (mask == Mask::kFromOut) {
        grad = masked(grad, stream<A, lanes>(a.out + at + i * lanes));
        store<lanes, A>(grad, a.masked + at + i * lanes);
      }
      const auto g = __builtin_convertvector(grad, Vector<S, lanes>);
      sum[i] += g;
      product[i] += g * (__builtin_convertvector(x, Vector<S, lanes>) - mean[i]);
    }
  }
  for (int i = 0; i < count; ++i) {
    add<lanes, S>(sum[i], a.sums + j + i * lanes);
    add<lanes, S>(product[i], a.products + j + i * lanes);
  }
}

template <typename T, int lanes, bool residual, bool relu>
RESNET_MIN_TARGET inline void apply(const Normalise<T>& a, int64_t at, int64_t j) {
  using A = typename Types<T>::Apply;
  auto v = stream<A, lanes>(a.x + at) * load<A, lanes>(a.scale + j) + load<A, lanes>(a.shift + j);
  if (residual) v += stream<A, lanes>(a.residual + at);
  if (relu) v = masked(v, v);
  store<lanes, A>(v, a.out + at);
}

template <typename T, int lanes, bool mask>
RESNET_MIN_TARGET inline void apply(const InputGradients<T>& a, int64_t at, int64_t j) {
  using A = typename Types<T>::Apply;
  const auto x = stream<A, lanes>(a.x + at);
  auto grad = stream<A, lanes>(a.grad + at);
  if (mask) grad = masked(grad, x * load<A, lanes>(a.scale + j) + load<A, lanes>(a.shift + j));
  grad = grad * load<A, lanes>(a.of_grad + j) + (x * load<A, lanes>(a.of_x + j) + load<A, lanes>(a.constant + j));
  store<lanes, A>(grad, a.grad_x + at);
}

// All columns: four vectors at a time, so that as many sums are under way as the processor's latency asks for, then
// single vectors, then single columns.
template <typename T, auto... options, typename Args>
RESNET_MIN_TARGET void by_columns(const Args& a, const Part& part) {
  constexpr int lanes = kBytes / sizeof(typename Types<T>::Sum);
  int64_t j = 0;
  for (; j + 4 * lanes <= part.columns; j += 4 * lanes) tile<T, lanes, 4, options...>(a, part, j);
  for (; j + lanes <= part.columns; j += lanes) tile<T, lanes, 1, options...>(a, part, j);
  for (; j < part.columns; ++j) tile<T, 1, 1, options...>(a, part, j);
}

template <typename T, auto... options, typename Args>
RESNET_MIN_TARGET void by_rows(const Args& args, const Part& rows) {
  const Args a = args;  // of our own: no store through a pointer can change them
  const Part part = rows;
  constexpr int lanes = kBytes / sizeof(typename Types<T>::Apply);
  int64_t at = part.first;
  for (int64_t r = 0; r < part.rows; ++r, at += part.stride) {
    int64_t j = 0;
    for (; j + lanes <= part.columns; j += lanes) apply<T, lanes, options...>(a, at + j, j);
    for (; j < part.columns; ++j) apply<T, 1, options...>(a, at + j, j);
  }
}

template <typename T>
constexpr Loops<T> kLoops = {
    by_columns<T>,
    {by_columns<T, Mask::kNone>, by_columns<T, Mask::kFromX>, by_columns<T, Mask::kFromOut>},
    {{by_rows<T, false, false>, by_rows<T, false, true>}, {by_rows<T, true, false>, by_rows<T, true, true>}},
    {by_rows<T, false>, by_rows<T, true>},
};

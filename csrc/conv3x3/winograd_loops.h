// The loops of winograd_tiles.h (see vector.h): transforms of tiles, a vector of channels at a time, and products.

#include "transforms.h"

// ---- a row of tiles: first each column of pixels, then each tile's row of columns ----

// Known here, channels and what is made of them need no registers.
template <typename F>
RESNET_MIN_TARGET inline void with_channels(int64_t channels, const F& f) {
  static_assert(kSlab == 64);
  switch (channels) {
    case 16:
      return f(std::integral_constant<int64_t, 16>());
    case 32:
      return f(std::integral_constant<int64_t, 32>());
    case 48:
      return f(std::integral_constant<int64_t, 48>());
    default:
      return f(std::integral_constant<int64_t, 64>());
  }
}

constexpr int kAhead = 4096;  // values

// From rows of pixels to the points of `count` adjacent tiles of m columns each. A column's values are worked out once
// for both tiles that it may be part of.
template <int m, typename Of, int64_t channels, typename T>
RESNET_MIN_TARGET void transform_row(const TileRow<T>& tiles, float* half, float* to) {
  const TileRow<T> r = tiles;  // of our own: no store through a pointer can change it
  const int64_t end = r.left + m * r.count + Of::from - m;
  float* column = half;  // [column][row][channels]
  const auto zeros = [&](int64_t columns) {
    if (columns > 0) column = std::fill_n(column, columns * Of::to * channels, 0.f);
  };
  const int64_t first = std::max<int64_t>(r.left, 0), last = std::min(end, r.width);
  zeros(first - r.left);
  const T* pixels[Of::from];
  for (int i = 0; i < Of::from; ++i) pixels[i] = r.rows[i] + first * r.pixel[i];
  for (int64_t x = first; x < last; ++x, column += Of::to * channels) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < channels; c += kLanes) {
      V d[Of::from], v[Of::to];
#pragma GCC unroll 6
      for (int i = 0; i < Of::from; ++i) d[i] = load(pixels[i] + c);
      // Of the rows that no tile has had yet, what the next block of tiles begins with.
#pragma GCC unroll 6
      for (int i = Of::from - m; i < Of::from; ++i) __builtin_prefetch(pixels[i] + c + kAhead, 0, 2);
      Of::apply(d, v);
#pragma GCC unroll 6
      for (int i = 0; i < Of::to; ++i) store(v[i], column + i * channels + c);
    }
#pragma GCC unroll 6
    for (int i = 0; i < Of::from; ++i) pixels[i] += r.pixel[i];
  }
  zeros(end - last);
  for (int64_t t = 0; t < r.count; ++t, half += m * Of::to * channels, to += r.tile) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      float* point = to + c;
#pragma GCC unroll 6
      for (int i = 0; i < Of::to; ++i) {
        V d[Of::from], v[Of::to];
#pragma GCC unroll 6
        for (int j = 0; j < Of::from; ++j) d[j] = load(half + (j * Of::to + i) * channels + c);
        Of::apply(d, v);
#pragma GCC unroll 6
        for (int j = 0; j < Of::to; ++j, point += r.point) store(v[j], point);
      }
    }
  }
}

template <int m, typename Of, typename T>
RESNET_MIN_TARGET void transform(const TileRow<T>& tiles, float* half, float* to) {
  with_channels(tiles.channels, [&](auto channels) { transform_row<m, Of, channels()>(tiles, half, to); });
}

// From the points of `count` adjacent tiles to their pixels, those that are inside.
template <int m, typename Of, int64_t channels, typename T>
RESNET_MIN_TARGET void output_row(const float* from, int64_t stride, const PixelRow<T>& pixel_row) {
  const PixelRow<T> r = pixel_row;
  T* pixels = r.to;
  for (int64_t t = 0; t < r.count; ++t, from += channels, pixels += m * r.pixel) {
    const int64_t width = r.width - m * t;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const float* point = from + c;
      V columns[m][m + 2];
#pragma GCC unroll 6
      for (int i = 0; i < m + 2; ++i) {
        V row[m + 2], v[m];
#pragma GCC unroll 6
        for (int j = 0; j < m + 2; ++j, point += stride) row[j] = load(point);
        Of::apply(row, v);
#pragma GCC unroll 6
        for (int j = 0; j < m; ++j) columns[j][i] = v[j];
      }
#pragma GCC unroll 6
      for (int j = 0; j < m; ++j) {
        if (j >= width) break;
        V v[m];
        Of::apply(columns[j], v);
        T* to = pixels + j * r.pixel + c;
#pragma GCC unroll 6
        for (int i = 0; i < m; ++i, to += r.row) {
          if (i < r.height) store(v[i], to);
        }
      }
    }
  }
}

template <int m, typename Of, typename T>
RESNET_MIN_TARGET void transform_output(const float* from, int64_t stride, const PixelRow<T>& r) {
  with_channels(r.channels, [&](auto channels) { output_row<m, Of, channels()>(from, stride, r); });
}

// ---- weights: between taps [3][3] and points [m + 2][m + 2], each of `channels` values ----

template <typename Of>
RESNET_MIN_TARGET void transform_weight(const float* const* from, float* to, int64_t stride, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    V half[Of::from][Of::to], r[Of::to];
#pragma GCC unroll 6
    for (int i = 0; i < Of::from; ++i) {
      V d[Of::from];
#pragma GCC unroll 6
      for (int j = 0; j < Of::from; ++j) d[j] = load(from[i * Of::from + j] + c);
      Of::apply(d, half[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < Of::to; ++j) {
      V column[Of::from];
#pragma GCC unroll 6
      for (int i = 0; i < Of::from; ++i) column[i] = half[i][j];
      Of::apply(column, r);
#pragma GCC unroll 6
      for (int i = 0; i < Of::to; ++i) store(r[i], to + (i * Of::to + j) * stride + c);
    }
  }
}

// ---- products: out[i][j] = (or +=) the sum over s of a[i][s] * b[s][j], for `columns` columns j ----

// stride: p.a_row_stride where it is known here, or 0. Known, it needs no register for each row.
template <int rows, int vectors, int stride = 0>
RESNET_MIN_TARGET inline void multiply_rows(const Product& p, const float* a, const float* b, float* out) {
  const int64_t row = stride > 0 ? stride : p.a_row_stride, a_stride = p.a_stride, b_stride = p.b_stride;
  V sum[rows][vectors] = {};
  for (int64_t s = p.terms; s > 0; --s, a += a_stride, b += b_stride) {
    V factor[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) factor[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const float each = a[i * row];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += factor[j] * each;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* to = out + i * p.out_stride + j * kLanes;
      store(p.accumulate ? sum[i][j] + load(to) : sum[i][j], to);
    }
  }
}

template <int rows, int vectors, int stride = 0>
RESNET_MIN_TARGET inline void multiply_columns(const Product& p, int64_t i) {
  for (int64_t j = 0; j < p.columns; j += vectors * kLanes) {
    multiply_rows<rows, vectors, stride>(p, p.a + i * p.a_row_stride, p.b + j, p.out + i * p.out_stride + j);
  }
}

// The last rows, fewer than a product has.
template <int rows, int vectors>
RESNET_MIN_TARGET void multiply_rest(const Product& p, int64_t i) {
  if (p.rows - i == rows) return multiply_columns<rows, vectors>(p, i);
  if constexpr (rows > 1) multiply_rest<rows - 1, vectors>(p, i);
}

// rows × vectors sums, and what they are made from, are to fill the registers.
template <int rows, int vectors>
RESNET_MIN_TARGET void multiply_by(const Product& p) {
  int64_t i = 0;
  if (p.a_row_stride == 1) {
    for (; i + rows <= p.rows; i += rows) multiply_columns<rows, vectors, 1>(p, i);
  } else if (p.a_row_stride == 16) {
    for (; i + rows <= p.rows; i += rows) multiply_columns<rows, vectors, 16>(p, i);
  } else if (p.a_row_stride == 32) {
    for (; i + rows <= p.rows; i += rows) multiply_columns<rows, vectors, 32>(p, i);
  } else {
    for (; i + rows <= p.rows; i += rows) multiply_columns<rows, vectors>(p, i);
  }
  if (i < p.rows) multiply_rest<rows - 1, vectors>(p, i);
}

RESNET_MIN_TARGET void multiply(const Product& p) {
  if constexpr (kBytes == 64) {
    if (p.columns % 64 == 0) return multiply_by<6, 4>(p);
    if (p.columns % 32 == 0) return multiply_by<12, 2>(p);
    return multiply_by<16, 1>(p);
  } else {
    return multiply_by<6, 2>(p);
  }
}

template <typename T, int m>
constexpr Loops<T, m> kLoops = {
    transform<2, OfInput2>,      transform<2, OfOutputGradient2>,     transform_output<2, OfOutput2>,
    transform_weight<OfWeight2>, transform_weight<OfWeightGradient2>, multiply};
template <typename T>
constexpr Loops<T, 4> kLoops<T, 4> = {
    transform<4, OfInput4>,      transform<4, OfOutputGradient4>,     transform_output<4, OfOutput4>,
    transform_weight<OfWeight4>, transform_weight<OfWeightGradient4>, multiply};

// Maps in Winograd's tiles, and the loops over them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "vector.h"

namespace resnet_min::winograd {

constexpr int64_t kSlab = 64;  // channels that are worked on at a time, at most

// Of tiles of m × m pixels.
constexpr int points_of(int m) { return (m + 2) * (m + 2); }

// ---- the loops, for each instruction set ----

// out[i * out_stride + j] = the sum over s of a[i * a_row_stride + s * a_stride] * b[s * b_stride + j], for `columns`
// columns j (multiples of 16), `rows` rows i and `terms` terms s; or += that, to accumulate.
struct Product {
  const float* a;
  int64_t a_row_stride, a_stride;
  const float* b;
  int64_t b_stride;
  float* out;
  int64_t out_stride, rows, columns, terms;
  bool accumulate;
};

// Adjacent tiles of a row of tiles, some channels of them. Their pixels are in m + 2 rows (of a gradient, m), from
// column `left` on; what is not in 0 … width is zero. Each row is given where its column 0 is; a row outside the map is
// zeros, of a single pixel.
template <typename T>
struct TileRow {
  std::array<const T*, 6> rows;
  std::array<int64_t, 6> pixel;  // strides
  int64_t left, width, count, channels;
  int64_t tile, point;  // strides of the result
};

// Where the output of adjacent tiles goes: `width` columns are inside from the first on, and `height` rows.
template <typename T>
struct PixelRow {
  T* to;
  int64_t row, pixel;  // strides
  int64_t count, width, height, channels;
};

// Maps of T, float or the bits of bfloat16, in tiles of m × m.
template <typename T, int m>
struct Loops {
  // From pixels to points; `half` has room for (m + 2) * (m * count + 2) * channels.
  void (*input)(const TileRow<T>&, float* half, float* to);
  void (*output_gradient)(const TileRow<T>&, float* half, float* to);
  // From points to pixels.
  void (*output)(const float* from, int64_t stride, const PixelRow<T>&);
  // Between taps and points, each of `channels` values.
  void (*weight)(const float* const* from, float* to, int64_t stride, int64_t channels);
  void (*weight_gradient)(const float* const* from, float* to, int64_t stride, int64_t channels);
  void (*multiply)(const Product&);
};

#define RESNET_MIN_LOOPS "conv3x3/winograd_loops.h"
#include "vector.h"

template <typename T, int m>
const Loops<T, m>& loops() {
  return RESNET_MIN_CHOSEN(kLoops<T, m>);
}

// ---- tiles ----

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The widest part of `channels`, up to `widest`, that they are a multiple of.
inline int64_t part_of(int64_t channels, int64_t widest) {
  while (channels % widest != 0) widest /= 2;
  return widest;
}

// Maps [images, height, width, channels], in tiles of m × m.
template <int m>
struct Maps {
  int64_t images, height, width, channels, across, down, tiles;  // tiles: across and down an image, in all

  explicit Maps(const at::Tensor& x)
      : images(x.size(0)),
        height(x.size(2)),
        width(x.size(3)),
        channels(x.size(1)),
        across(ceil_div(width, m)),
        down(ceil_div(height, m)),
        tiles(images * across * down) {}

  // Where a row of pixels begins.
  int64_t at(int64_t image, int64_t y) const { return (image * height + y) * width * channels; }

  // Calls f(image, y, first, count, done) for each row of tiles that has some of the tiles `begin` … `end`: those
  // `count` from the `first` on, after `done` in other rows. y: of their first row of pixels.
  template <typename F>
  void over_rows(int64_t begin, int64_t end, const F& f) const {
    for (int64_t tile = begin; tile < end;) {
      const int64_t row = tile / across, first = tile % across, count = std::min(across - first, end - tile);
      f(row / down, row % down * m, first, count, tile - begin);
      tile += count;
    }
  }
};

// Values of `tiles` tiles at each point. The stride from point to point is a cache line more than that: one of many
// pages would have all of them in the same few lines of the cache.
template <typename T, int m>
class Points {
 public:
  const int64_t channels, stride;

  Points(int64_t tiles, int64_t channels)
      : channels(channels),
        stride(tiles * channels + 16),
        values_(at::empty({points_of(m) * stride}, at::kFloat)),
        half_(at::empty({(m + 2) * (m * tiles + 2) * kSlab}, at::kFloat)),
        data_(values_.mutable_data_ptr<float>()) {}
  float* of(int64_t tile) const { return data_ + tile * channels; }
  float* at(int point) const { return data_ + point * stride; }

  // Those of maps' tiles `begin` … `end`, of `channels` channels from `channel` on.
  void from_input(const Maps<m>& maps, const T* data, int64_t begin, int64_t end, int64_t channel) const {
    transform<m + 2>(loops<T, m>().input, maps, data, begin, end, channel);
  }
  void from_output_gradient(const Maps<m>& maps, const T* data, int64_t begin, int64_t end, int64_t channel) const {
    transform<m>(loops<T, m>().output_gradient, maps, data, begin, end, channel);
  }

 private:
  // `size` rows of pixels in a tile, as many of them before the tile's own m as after these.
  template <int size>
  void transform(decltype(Loops<T, m>::input) loop, const Maps<m>& maps, const T* data, int64_t begin, int64_t end,
                 int64_t channel) const {
    static constexpr T kZeros[kSlab] = {};
    constexpr int64_t before = (size - m) / 2;
    float* const half = half_.mutable_data_ptr<float>();
    maps.over_rows(begin, end, [&](int64_t image, int64_t y, int64_t first, int64_t count, int64_t done) {
      for (int64_t c = 0; c < channels; c += kSlab) {
        TileRow<T> row{{}, {}, m * first - before, maps.width, count, std::min(kSlab, channels - c), channels, stride};
        for (int i = 0; i < size; ++i) {
          const int64_t at = y - before + i;
          const bool inside = at >= 0 && at < maps.height;
          row.rows[i] = inside ? data + maps.at(image, at) + channel + c : kZeros;
          row.pixel[i] = inside ? maps.channels : 0;
        }
        loop(row, half, of(done) + c);
      }
    });
  }

  const at::Tensor values_, half_;
  float* const data_;
};

// Calls f with the size of tiles that takes the least time: by their number, and the weights, which take about as long
// to transform and read as 30 tiles. Large ones are to be allowed in float32; beside bfloat16's rounding, that of any
// tile is nothing.
template <typename F>
auto with_tiles(const at::Tensor& x, bool large, const F& f) {
  constexpr int64_t kWeights = 30;
  constexpr std::integral_constant<int, 2> two;
  constexpr std::integral_constant<int, 4> four;
  const auto cost = [&](auto m) { return points_of(m()) * (Maps<m()>(x).tiles + kWeights); };
  const bool allowed = large || x.scalar_type() == at::kBFloat16;
  return allowed && cost(four) < cost(two) ? f(four) : f(two);
}

}  // namespace resnet_min::winograd

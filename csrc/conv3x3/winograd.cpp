// The 3×3 convolution of float32 channels_last maps at stride 1, padded by 1, forward and backward, as
// F(2×2, 3×3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): a tile of 2×2 output
// pixels comes from the 4×4 of input around it by 16 multiplications for each pair of channels, where the plain sum
// takes 36. Tiles are transformed to 16 "points"; at each, what was a convolution is a product of matrices [tiles, C]
// and [C, O]; the outcome is transformed to pixels. A block of tiles goes all the way while it is in cache.
//
//   output = A^T [(G w G^T) * (B^T d B)] A      the gradients are those of this: of the input, a convolution by the
//                                               turned weight; of the weight, G^T [(A g A^T) * (B^T d B)] G
#include "conv3x3/winograd.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "vector.h"

namespace resnet_min::winograd {
namespace {

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;
constexpr int kPoints = 16;
constexpr int64_t kSlab = 64;  // channels that are worked on at a time, at most

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

// Adjacent tiles of a row of tiles, some channels of them. Their pixels are in four rows (of a gradient, two), from
// column `left` on; what is not in 0 … width is zero. Each row is given where its column 0 is; a row outside the map is
// zeros, of a single pixel.
struct TileRow {
  std::array<const float*, 4> rows;
  std::array<int64_t, 4> pixel;  // strides
  int64_t left, width, count, channels;
  int64_t tile, point;  // strides of the result
};

// Where the output of adjacent tiles goes: `width` columns are inside from the first on, and the second row if `below`.
struct PixelRow {
  float* to;
  int64_t row, pixel;  // strides
  int64_t count, width, channels;
  bool below;
};

struct Loops {
  // From pixels to points; `half` has room for 4 * 2 * (count + 1) * channels.
  void (*input)(const TileRow&, float* half, float* to);
  void (*output_gradient)(const TileRow&, float* half, float* to);
  // From points to pixels.
  void (*output)(const float* from, int64_t stride, const PixelRow&);
  // Between taps and points, each of `channels` values.
  void (*weight)(const float* const* from, float* to, int64_t stride, int64_t channels);
  void (*weight_gradient)(const float* const* from, float* to, int64_t stride, int64_t channels);
  void (*multiply)(const Product&);
};

#define RESNET_MIN_LOOPS "conv3x3/winograd_loops.h"
#include "vector.h"

const Loops& loops() { return RESNET_MIN_CHOSEN(kLoops); }

// ---- tiles ----

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The widest part of `channels`, up to `widest`, that they are a multiple of.
int64_t part_of(int64_t channels, int64_t widest) {
  while (channels % widest != 0) widest /= 2;
  return widest;
}

// Maps [images, height, width, channels], in tiles of 2×2.
struct Maps {
  int64_t images, height, width, channels, across, down, tiles;  // tiles: across and down an image, in all

  explicit Maps(const at::Tensor& x)
      : images(x.size(0)),
        height(x.size(2)),
        width(x.size(3)),
        channels(x.size(1)),
        across((width + 1) / 2),
        down((height + 1) / 2),
        tiles(images * across * down) {}

  // Where a row of pixels begins.
  int64_t at(int64_t image, int64_t y) const { return (image * height + y) * width * channels; }

  // Calls f(image, y, first, count, done) for each row of tiles that has some of the tiles `begin` … `end`: those
  // `count` from the `first` on, after `done` in other rows. y: of their first row of pixels.
  template <typename F>
  void over_rows(int64_t begin, int64_t end, const F& f) const {
    for (int64_t tile = begin; tile < end;) {
      const int64_t row = tile / across, first = tile % across, count = std::min(across - first, end - tile);
      f(row / down, row % down * 2, first, count, tile - begin);
      tile += count;
    }
  }
};

// Values of `tiles` tiles at each point. The stride from point to point is a cache line more than that: one of many
// pages would have all of them in the same few lines of the cache.
class Points {
 public:
  const int64_t channels, stride;

  Points(int64_t tiles, int64_t channels)
      : channels(channels),
        stride(tiles * channels + 16),
        values_(at::empty({kPoints * stride}, at::kFloat)),
        half_(at::empty({4 * 2 * (tiles + 1) * kSlab}, at::kFloat)),
        data_(values_.mutable_data_ptr<float>()) {}
  float* of(int64_t tile) const { return data_ + tile * channels; }
  float* at(int point) const { return data_ + point * stride; }

  // Those of maps' tiles `begin` … `end`, of `channels` channels from `channel` on.
  void from_input(const Maps& maps, const float* data, int64_t begin, int64_t end, int64_t channel) const {
    transform<4>(loops().input, maps, data, begin, end, channel);
  }
  void from_output_gradient(const Maps& maps, const float* data, int64_t begin, int64_t end, int64_t channel) const {
    transform<2>(loops().output_gradient, maps, data, begin, end, channel);
  }

 private:
  // `size` rows of pixels in a tile, as many of them before the tile's own two as after these.
  template <int size>
  void transform(decltype(Loops::input) loop, const Maps& maps, const float* data, int64_t begin, int64_t end,
                 int64_t channel) const {
    static constexpr float kZeros[kSlab] = {};
    constexpr int64_t before = size / 2 - 1;
    float* const half = half_.mutable_data_ptr<float>();
    maps.over_rows(begin, end, [&](int64_t image, int64_t y, int64_t first, int64_t count, int64_t done) {
      for (int64_t c = 0; c < channels; c += kSlab) {
        TileRow row{{}, {}, 2 * first - before, maps.width, count, std::min(kSlab, channels - c), channels, stride};
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

// ---- forward, and the input's gradient ----

// weight [R][N] at each of 9 taps, `turned` or not -> its transform [N / slab][point][R][slab].
at::Tensor transformed(const at::Tensor& weight, bool turned) {
  const int64_t rows = weight.size(2), columns = weight.size(3), slab = part_of(columns, kSlab);
  at::Tensor result = at::empty({columns / slab, 4, 4, rows, slab}, weight.options());
  const float* taps = weight.const_data_ptr<float>();
  float* points = result.mutable_data_ptr<float>();
  at::parallel_for(0, columns / slab * rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = i / rows, row = i % rows;
      std::array<const float*, 9> from;
      for (int tap = 0; tap < 9; ++tap) {
        from[turned ? 8 - tap : tap] = taps + (tap * rows + row) * columns + index * slab;
      }
      loops().weight(from.data(), points + (index * kPoints * rows + row) * slab, rows * slab, slab);
    }
  });
  return result;
}

// weight [O, C, 3, 3] as [3, 3, O, C]
at::Tensor by_taps(const at::Tensor& weight) { return weight.permute({2, 3, 0, 1}); }

// The convolution of channels_last x by a transformed weight [O / slab][point][C][slab].
at::Tensor convolved(const at::Tensor& x, const at::Tensor& weight) {
  const Maps in(x);
  const int64_t inputs = in.channels, slabs = weight.size(0), slab = weight.size(4), outputs = slabs * slab;
  at::Tensor result = at::empty({in.images, outputs, in.height, in.width}, x.options(), kLayout);
  if (result.numel() == 0) return result;
  const Maps out(result);

  // Blocks of tiles that stay in cache, as many for each thread. Where there are too few tiles for that, the outputs
  // are shared out, and each thread transforms the input anew.
  const int64_t threads = at::get_num_threads();
  const int64_t shares = in.tiles < 48 * threads ? std::min(threads, slabs) : 1;
  const int64_t most = inputs <= 128 ? 48 : 96;  // large weights are to be read for many tiles at a time
  const int64_t blocks_a_thread = ceil_div(in.tiles * shares, most * threads);
  const int64_t block = ceil_div(ceil_div(in.tiles * shares, blocks_a_thread * threads), 16) * 16;
  const int64_t blocks = ceil_div(in.tiles, block);

  const float *x_data = x.const_data_ptr<float>(), *weights = weight.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  at::parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    const Points points(block, inputs), products(block, slab);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / shares * block, last = std::min(first + block, in.tiles);
      points.from_input(in, x_data, first, last, 0);
      for (int64_t index = item % shares; index < slabs; index += shares) {
        for (int point = 0; point < kPoints; ++point) {
          loops().multiply({points.at(point), inputs, 1, weights + (index * kPoints + point) * inputs * slab, slab,
                            products.at(point), slab, last - first, slab, inputs, false});
        }
        out.over_rows(first, last, [&](int64_t image, int64_t y, int64_t tile, int64_t count, int64_t done) {
          loops().output(products.of(done), products.stride,
                         {to + out.at(image, y) + 2 * tile * outputs + index * slab, out.width * outputs, outputs,
                          count, out.width - 2 * tile, slab, y + 1 < out.height});
        });
      }
    }
  });
  return result;
}

}  // namespace

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight) {
  return convolved(x, transformed(by_taps(weight).transpose(2, 3).contiguous(), false));
}

at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight) {
  return convolved(grad, transformed(by_taps(weight).contiguous(), true));
}

// ---- the weight's gradient ----

at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x) {
  constexpr int64_t kBlock = 32;
  const Maps in(x), out(grad);
  const int64_t inputs = in.channels, outputs = out.channels, tiles = in.tiles;
  // Sums of some inputs and some outputs over a chunk of the tiles, which stay in cache. Chunks' sums are added in
  // their order, and cut by the shape alone: the same bits for any number of threads.
  const int64_t wide = part_of(inputs, 128), high = part_of(outputs, 128), slab = std::min(wide, kSlab);
  const int64_t across = inputs / wide, parts = across * (outputs / high);
  const int64_t chunks = std::clamp<int64_t>((1 << 18) / (inputs * outputs), 1, 16);
  const int64_t chunk = ceil_div(tiles, chunks);
  const int64_t stride = high * wide + 16;
  at::Tensor sums = at::empty({chunks, parts, kPoints * stride}, x.options());
  const auto sum = [&, data = sums.mutable_data_ptr<float>()](int64_t chunk, int64_t part, int point) {
    return data + ((chunk * parts + part) * kPoints + point) * stride;
  };
  const float *x_data = x.const_data_ptr<float>(), *grad_data = grad.const_data_ptr<float>();
  at::parallel_for(0, chunks * parts, 1, [&](int64_t begin, int64_t end) {
    const Points x_points(kBlock, wide), grad_points(kBlock, high);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t c = index / parts, part = index % parts, o = part / across * high, i = part % across * wide;
      const int64_t first = std::min(tiles, c * chunk), last = std::min(tiles, first + chunk);
      for (int64_t t = first; t < last; t += kBlock) {
        const int64_t next = std::min(t + kBlock, last);
        x_points.from_input(in, x_data, t, next, i);
        grad_points.from_output_gradient(out, grad_data, t, next, o);
        for (int point = 0; point < kPoints; ++point) {
          for (int64_t j = 0; j < wide; j += slab) {
            loops().multiply({grad_points.at(point), 1, high, x_points.at(point) + j, wide, sum(c, part, point) + j,
                              wide, high, slab, next - t, t > first});
          }
        }
      }
      if (first == last) std::fill_n(sum(c, part, 0), kPoints * stride, 0.f);
    }
  });

  at::Tensor result = at::empty({outputs, inputs, 3, 3}, x.options(), kLayout);
  float* taps = result.mutable_data_ptr<float>();
  at::parallel_for(0, parts * high, 16, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index / high, row = index % high;
      std::array<const float*, kPoints> points;
      for (int point = 0; point < kPoints; ++point) {
        float* total = sum(0, part, point) + row * wide;
        for (int64_t c = 1; c < chunks; ++c) {
          const float* more = sum(c, part, point) + row * wide;
          for (int64_t j = 0; j < wide; ++j) total[j] += more[j];
        }
        points[point] = total;
      }
      const int64_t o = part / across * high + row, i = part % across * wide;
      loops().weight_gradient(points.data(), taps + o * 9 * inputs + i, inputs, wide);
    }
  });
  return result;
}

}  // namespace resnet_min::winograd

// The 3×3 convolution of channels_last maps at stride 1, padded by 1, forward and backward, as F(2×2, 3×3) and
// F(4×4, 3×3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), in float32: a tile of
// 2×2 output pixels comes from the 4×4 of input around it by 16 multiplications for each pair of channels, where the
// plain sum takes 36; a tile of 4×4, from 6×6, by 36 where it takes 144, and is less exact. Tiles are transformed to
// "points", one for each multiplication; at each, what was a convolution is a product of matrices [tiles, C] and
// [C, O]; the outcome is transformed to pixels. A block of tiles goes all the way while it is in cache.
//
//   output = A^T [(G w G^T) * (B^T d B)] A      the gradients are those of this: of the input, a convolution by the
//                                               turned weight; of the weight, G^T [(A g A^T) * (B^T d B)] G
#include "conv3x3/winograd.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "conv3x3/winograd_tiles.h"

namespace resnet_min::winograd {
namespace {

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

// The values of a map: float, or bfloat16's bits.
template <typename T>
const T* values(const at::Tensor& map) {
  return static_cast<const T*>(map.const_data_ptr());
}
template <typename T>
T* room(const at::Tensor& map) {
  return static_cast<T*>(map.mutable_data_ptr());
}

// Calls f with a value of the type that stands for x's.
template <typename F>
auto with_type(const at::Tensor& x, const F& f) {
  return x.scalar_type() == at::kBFloat16 ? f(uint16_t()) : f(float());
}

// ---- forward, and the input's gradient ----

// weight [R][N] at each of 9 taps, `turned` or not -> its transform [N / slab][point][R][slab].
template <int m>
at::Tensor transformed(const at::Tensor& weight, bool turned) {
  constexpr int points = points_of(m);
  const int64_t rows = weight.size(2), columns = weight.size(3), slab = part_of(columns, kSlab);
  at::Tensor result = at::empty({columns / slab, points, rows, slab}, weight.options());
  const float* taps = weight.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  at::parallel_for(0, columns / slab * rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = i / rows, row = i % rows;
      std::array<const float*, 9> from;
      for (int tap = 0; tap < 9; ++tap) {
        from[turned ? 8 - tap : tap] = taps + (tap * rows + row) * columns + index * slab;
      }
      loops<float, m>().weight(from.data(), to + (index * points * rows + row) * slab, rows * slab, slab);
    }
  });
  return result;
}

// weight [O, C, 3, 3] as [3, 3, O, C], float32
at::Tensor by_taps(const at::Tensor& weight) { return weight.to(at::kFloat).permute({2, 3, 0, 1}); }

// The convolution of channels_last x by a transformed weight [O / slab][point][C][slab].
template <typename T, int m>
at::Tensor convolved(const at::Tensor& x, const at::Tensor& weight) {
  const Maps<m> in(x);
  const int64_t inputs = in.channels, slabs = weight.size(0), slab = weight.size(3), outputs = slabs * slab;
  at::Tensor result = at::empty({in.images, outputs, in.height, in.width}, x.options(), kLayout);
  if (result.numel() == 0) return result;
  const Maps<m> out(result);

  // Blocks of tiles that stay in cache, as many for each thread. Where there are too few tiles for that, the outputs
  // are shared out, and each thread transforms the input anew.
  const int64_t most = m == 4 ? 32 : inputs <= 128 ? 48 : 96;  // large weights are to be read for many tiles at a time
  const int64_t threads = at::get_num_threads();
  const int64_t shares = in.tiles < most * threads ? std::min(threads, slabs) : 1;
  const int64_t blocks_a_thread = ceil_div(in.tiles * shares, most * threads);
  const int64_t block = ceil_div(ceil_div(in.tiles * shares, blocks_a_thread * threads), 16) * 16;
  const int64_t blocks = ceil_div(in.tiles, block);

  const T* from = values<T>(x);
  const float* weights = weight.const_data_ptr<float>();
  T* const to = room<T>(result);
  const auto& loop = loops<T, m>();
  at::parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    const Points<T, m> points(block, inputs), products(block, slab);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / shares * block, last = std::min(first + block, in.tiles);
      points.from_input(in, from, first, last, 0);
      for (int64_t index = item % shares; index < slabs; index += shares) {
        for (int point = 0; point < points_of(m); ++point) {
          loop.multiply({points.at(point), inputs, 1, weights + (index * points_of(m) + point) * inputs * slab, slab,
                         products.at(point), slab, last - first, slab, inputs, false});
        }
        out.over_rows(first, last, [&](int64_t image, int64_t y, int64_t tile, int64_t count, int64_t done) {
          loop.output(products.of(done), products.stride,
                      {to + out.at(image, y) + m * tile * outputs + index * slab, out.width * outputs, outputs, count,
                       out.width - m * tile, out.height - y, slab});
        });
      }
    }
  });
  return result;
}

// The same, by a weight [3, 3, R, N].
at::Tensor convolved_by_taps(const at::Tensor& x, const at::Tensor& taps, bool turned, bool large_tiles) {
  return with_type(x, [&](auto t) {
    return with_tiles(x, large_tiles,
                      [&](auto m) { return convolved<decltype(t), m()>(x, transformed<m()>(taps, turned)); });
  });
}

}  // namespace

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, bool large_tiles) {
  return convolved_by_taps(x, by_taps(weight).transpose(2, 3).contiguous(), false, large_tiles);
}

at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight, bool large_tiles) {
  return convolved_by_taps(grad, by_taps(weight).contiguous(), true, large_tiles);
}

// ---- the weight's gradient ----

namespace {

template <typename T, int m>
at::Tensor gradient_of_weight(const at::Tensor& grad, const at::Tensor& x) {
  constexpr int64_t kBlock = 32, kPart = m == 2 ? 128 : 64;
  const Maps<m> in(x), out(grad);
  const int64_t inputs = in.channels, outputs = out.channels, tiles = in.tiles;
  // Sums of some inputs and some outputs over a chunk of the tiles, which stay in cache. Chunks' sums are added in
  // their order, and cut by the shape alone: the same bits for any number of threads.
  const int64_t wide = part_of(inputs, kPart), high = part_of(outputs, kPart), slab = std::min(wide, kSlab);
  const int64_t across = inputs / wide, parts = across * (outputs / high);
  const int64_t chunks =
      std::clamp<int64_t>(std::min((1 << 21) / (points_of(m) * inputs * outputs), tiles / kBlock), 1, 16);
  const int64_t chunk = ceil_div(tiles, chunks);
  const int64_t stride = high * wide + 16;
  at::Tensor sums = at::empty({chunks, parts, points_of(m) * stride}, at::kFloat);
  const auto sum = [&, data = sums.mutable_data_ptr<float>()](int64_t chunk, int64_t part, int point) {
    return data + ((chunk * parts + part) * points_of(m) + point) * stride;
  };
  const T *x_data = values<T>(x), *grad_data = values<T>(grad);
  const auto& loop = loops<T, m>();
  at::parallel_for(0, chunks * parts, 1, [&](int64_t begin, int64_t end) {
    const Points<T, m> x_points(kBlock, wide), grad_points(kBlock, high);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t c = index / parts, part = index % parts, o = part / across * high, i = part % across * wide;
      const int64_t first = std::min(tiles, c * chunk), last = std::min(tiles, first + chunk);
      for (int64_t t = first; t < last; t += kBlock) {
        const int64_t next = std::min(t + kBlock, last);
        x_points.from_input(in, x_data, t, next, i);
        grad_points.from_output_gradient(out, grad_data, t, next, o);
        for (int point = 0; point < points_of(m); ++point) {
          for (int64_t j = 0; j < wide; j += slab) {
            loop.multiply({grad_points.at(point), 1, high, x_points.at(point) + j, wide, sum(c, part, point) + j, wide,
                           high, slab, next - t, t > first});
          }
        }
      }
      if (first == last) std::fill_n(sum(c, part, 0), points_of(m) * stride, 0.f);
    }
  });

  at::Tensor result = at::empty({outputs, inputs, 3, 3}, sums.options(), kLayout);
  float* taps = result.mutable_data_ptr<float>();
  at::parallel_for(0, parts * high, 16, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index / high, row = index % high;
      std::array<const float*, points_of(m)> points;
      for (int point = 0; point < points_of(m); ++point) {
        float* total = sum(0, part, point) + row * wide;
        for (int64_t c = 1; c < chunks; ++c) {
          const float* more = sum(c, part, point) + row * wide;
          for (int64_t j = 0; j < wide; ++j) total[j] += more[j];
        }
        points[point] = total;
      }
      const int64_t o = part / across * high + row, i = part % across * wide;
      loop.weight_gradient(points.data(), taps + o * 9 * inputs + i, inputs, wide);
    }
  });
  return result.to(x.scalar_type());
}

}  // namespace

at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x, bool large_tiles) {
  return with_type(x, [&](auto t) {
    return with_tiles(x, large_tiles, [&](auto m) { return gradient_of_weight<decltype(t), m()>(grad, x); });
  });
}

}  // namespace resnet_min::winograd

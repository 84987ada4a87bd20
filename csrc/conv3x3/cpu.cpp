// The 3×3 convolution of float32 channels_last maps at stride 1, padded by 1, forward and backward, as
// F(2×2, 3×3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): a tile of 2×2 output
// pixels comes from the 4×4 of input around it by 16 multiplications for each pair of channels, where the plain sum
// takes 36. Tiles are transformed to 16 "points"; at each, what was a convolution is a product of matrices [tiles, C]
// and [C, O]; the outcome is transformed to pixels. A block of tiles goes all the way while it is in cache.
//
//   output = A^T [(G w G^T) * (B^T d B)] A      the gradients are those of this: of the input, a convolution by the
//                                               turned weight; of the weight, G^T [(A g A^T) * (B^T d B)] G
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "conv3x3/op.h"
#include "vector.h"

namespace resnet_min {
namespace {

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;
constexpr int kPoints = 16;

// ---- the loops, for each instruction set ----

// out[i * out_stride + j] = the sum over s of a[i * a_row_stride + s * a_stride] * b[s * b_stride + j], for kSlab
// columns j, `rows` rows i and `terms` terms s; or += that, to accumulate.
struct Product {
  const float* a;
  int64_t a_row_stride, a_stride;
  const float* b;
  int64_t b_stride;
  float* out;
  int64_t out_stride, rows, terms;
  bool accumulate;
};

using Transform = void(const float* const* from, float* to, int64_t stride, int64_t channels);
struct Loops {
  Transform *input, *weight, *output_gradient, *weight_gradient;
  // To those pixels that are inside; the others are null.
  void (*output)(const float* from, int64_t stride, float* const* pixels, int64_t channels);
  void (*multiply)(const Product&);
};

#define RESNET_MIN_LOOPS "conv3x3/cpu_loops.h"
#include "vector.h"

const Loops& loops() { return RESNET_MIN_CHOSEN(kLoops); }

// ---- tiles ----

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Maps [images, height, width, channels], in tiles of 2×2.
struct Maps {
  int64_t images, height, width, channels, across, each, tiles;  // tiles: across, of each image, in all

  explicit Maps(const at::Tensor& x)
      : images(x.size(0)),
        height(x.size(2)),
        width(x.size(3)),
        channels(x.size(1)),
        across((width + 1) / 2),
        each(across * ((height + 1) / 2)),
        tiles(images * each) {}

  // Where a tile's `size` * `size` pixels have their channels from `channel` on, the first pixel `before` rows and
  // columns before the tile. Pixels outside the map are at `outside`.
  template <int size, int before, typename T>
  std::array<T*, size * size> pixels(T* data, int64_t tile, int64_t channel, T* outside) const {
    const int64_t image = tile / each, top = tile % each / across * 2 - before, left = tile % across * 2 - before;
    std::array<T*, size * size> result;
    for (int i = 0; i < size * size; ++i) {
      const int64_t row = top + i / size, column = left + i % size;
      const bool inside = row >= 0 && row < height && column >= 0 && column < width;
      result[i] = inside ? data + ((image * height + row) * width + column) * channels + channel : outside;
    }
    return result;
  }
};

// Values of `tiles` tiles at each point. The stride from point to point is a cache line more than that: one of many
// pages would have all of them in the same few lines of the cache.
struct Points {
  int64_t channels, stride;
  at::Tensor values;
  float* data;

  Points(int64_t tiles, int64_t channels)
      : channels(channels),
        stride(tiles * channels + 16),
        values(at::empty({kPoints * stride}, at::kFloat)),
        data(values.mutable_data_ptr<float>()) {}
  float* of(int64_t tile) const { return data + tile * channels; }
  float* at(int point) const { return data + point * stride; }
};

// ---- forward, and the input's gradient ----

// weight [R][N] at each of 9 taps, `turned` or not -> its transform [N / kSlab][point][R][kSlab].
at::Tensor transformed(const at::Tensor& weight, bool turned) {
  const int64_t rows = weight.size(2), columns = weight.size(3);
  at::Tensor result = at::empty({columns / kSlab, 4, 4, rows, kSlab}, weight.options());
  const float* taps = weight.const_data_ptr<float>();
  float* points = result.mutable_data_ptr<float>();
  at::parallel_for(0, columns / kSlab * rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slab = i / rows, row = i % rows;
      std::array<const float*, 9> from;
      for (int tap = 0; tap < 9; ++tap) {
        from[turned ? 8 - tap : tap] = taps + (tap * rows + row) * columns + slab * kSlab;
      }
      loops().weight(from.data(), points + (slab * kPoints * rows + row) * kSlab, rows * kSlab, kSlab);
    }
  });
  return result;
}

// weight [O, C, 3, 3] as [3, 3, O, C]
at::Tensor by_taps(const at::Tensor& weight) { return weight.permute({2, 3, 0, 1}); }

// The convolution of channels_last x by a transformed weight [O / kSlab][point][C][kSlab].
at::Tensor winograd_conv(const at::Tensor& x, const at::Tensor& weight) {
  const Maps in(x);
  const int64_t inputs = in.channels, slabs = weight.size(0), outputs = slabs * kSlab;
  at::Tensor result = at::empty({in.images, outputs, in.height, in.width}, x.options(), kLayout);
  if (result.numel() == 0) return result;
  const Maps out(result);

  // Blocks of tiles that stay in cache, as many for each thread. Where there are too few tiles for that, the outputs
  // are shared out, and each thread transforms the input anew.
  const int64_t threads = at::get_num_threads();
  const int64_t shares = in.tiles < 48 * threads ? std::min(threads, slabs) : 1;
  const int64_t most = std::clamp<int64_t>((3 << 14) / inputs, 48, 192);
  const int64_t blocks_a_thread = ceil_div(in.tiles * shares, most * threads);
  const int64_t block = ceil_div(ceil_div(in.tiles * shares, blocks_a_thread * threads), 6) * 6;
  const int64_t blocks = ceil_div(in.tiles, block);

  const float *x_data = x.const_data_ptr<float>(), *weights = weight.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  at::parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    const Points points(block, inputs), products(block, kSlab);
    const at::Tensor zeros = at::zeros({inputs}, x.options());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / shares * block, count = std::min(block, in.tiles - first);
      for (int64_t i = 0; i < count; ++i) {
        const auto from = in.pixels<4, 1>(x_data, first + i, 0, zeros.const_data_ptr<float>());
        loops().input(from.data(), points.of(i), points.stride, inputs);
      }
      for (int64_t slab = item % shares; slab < slabs; slab += shares) {
        for (int point = 0; point < kPoints; ++point) {
          loops().multiply({points.at(point), inputs, 1, weights + (slab * kPoints + point) * inputs * kSlab, kSlab,
                            products.at(point), kSlab, count, inputs, false});
        }
        for (int64_t i = 0; i < count; ++i) {
          const auto pixels = out.pixels<2, 0, float>(to, first + i, slab * kSlab, nullptr);
          loops().output(products.of(i), products.stride, pixels.data(), kSlab);
        }
      }
    }
  });
  return result;
}

at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight) {
  return winograd_conv(grad, transformed(by_taps(weight).contiguous(), true));
}

// ---- the weight's gradient ----

at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x) {
  constexpr int64_t kBlock = 64;
  const Maps in(x), out(grad);
  const int64_t inputs = in.channels, outputs = out.channels, tiles = in.tiles;
  // Sums of some inputs and some outputs over a chunk of the tiles, which stay in cache. Chunks' sums are added in
  // their order, and cut by the shape alone: the same bits for any number of threads.
  const int64_t wide = inputs % 128 == 0 ? 128 : kSlab, high = outputs % 128 == 0 ? 128 : kSlab;
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
    const at::Tensor zeros = at::zeros({std::max(wide, high)}, x.options());
    const float* outside = zeros.const_data_ptr<float>();
    for (int64_t index = begin; index < end; ++index) {
      const int64_t c = index / parts, part = index % parts, o = part / across * high, i = part % across * wide;
      const int64_t first = std::min(tiles, c * chunk), last = std::min(tiles, first + chunk);
      for (int64_t t = first; t < last; t += kBlock) {
        const int64_t count = std::min(kBlock, last - t);
        for (int64_t k = 0; k < count; ++k) {
          const auto x_pixels = in.pixels<4, 1>(x_data, t + k, i, outside);
          loops().input(x_pixels.data(), x_points.of(k), x_points.stride, wide);
          const auto grad_pixels = out.pixels<2, 0>(grad_data, t + k, o, outside);
          loops().output_gradient(grad_pixels.data(), grad_points.of(k), grad_points.stride, high);
        }
        for (int point = 0; point < kPoints; ++point) {
          for (int64_t j = 0; j < wide; j += kSlab) {
            loops().multiply({grad_points.at(point), 1, high, x_points.at(point) + j, wide, sum(c, part, point) + j,
                              wide, high, count, t > first});
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

// ---- the operators ----

at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weight) {
  check_conv3x3(x, weight);
  return winograd_conv(x.contiguous(kLayout), transformed(by_taps(weight).transpose(2, 3).contiguous(), false));
}

std::tuple<at::Tensor, at::Tensor> conv3x3_backward(const at::Tensor& grad, const at::Tensor& x,
                                                    const at::Tensor& weight, bool for_x, bool for_weight) {
  check_conv3x3_backward(grad, x, weight);
  const at::Tensor of_output = grad.contiguous(kLayout);
  return {for_x ? input_gradient(of_output, weight) : at::empty({0}, x.options()),
          for_weight ? weight_gradient(of_output, x.contiguous(kLayout)) : at::empty({0}, x.options())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def("conv3x3(Tensor x, Tensor weight) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "conv3x3_backward(Tensor grad, Tensor x, Tensor weight, bool for_x, bool for_weight) -> (Tensor grad_x, Tensor "
      "grad_weight)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) {
  m.impl("conv3x3", &conv3x3);
  m.impl("conv3x3_backward", &conv3x3_backward);
}

}  // namespace resnet_min

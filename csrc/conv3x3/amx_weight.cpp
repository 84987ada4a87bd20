// The gradient of a 3×3 convolution's weight, in bfloat16 by AMX: for each tap a product of matrices, [outputs, pixels]
// and [pixels, inputs], 32 images of a pixel at a time.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "conv3x3/amx.h"

#ifdef RESNET_MIN_HAS_AMX
#include "conv3x3/amx_layer.h"

namespace resnet_min::amx {
namespace {

// The widest part of `channels`, up to 128, that they are a multiple of.
int64_t part_of(int64_t channels) {
  int64_t part = 128;
  while (channels % part != 0) part /= 2;
  return part;
}

// Maps channels_last.
struct Maps {
  const Bf16* data;
  int64_t images, channels, height, width;

  explicit Maps(const at::Tensor& x)
      : data(data_of(x)), images(x.size(0)), channels(x.size(1)), height(x.size(2)), width(x.size(3)) {}

  // Some channels of a row of the 32 images from `first` on, as tiles: [pixel][channels / 16].
  template <bool turned>
  void pack(int64_t first, int64_t row, int64_t channel, int64_t of, Bf16* to) const {
    const Bf16* from = data + (first * height + row) * width * channels + channel;
    for (int64_t x = 0; x < width; ++x, from += channels) {
      for (int64_t c = 0; c < of; c += 16, to += kTile) {
        pack_images<turned>(from + c, height * width * channels, images - first, to);
      }
    }
  }
};

// A unit of the sum: some rows of some blocks of 32 images, and the rows of x that they take. Zeros are around x.
struct Unit {
  int64_t blocks, rows, x_rows, width, x_width, pixel, x_pixel;
  at::Tensor grad_tiles, x_tiles;

  Unit(int64_t blocks, int64_t rows, int64_t stride, const Maps& grad, const Maps& x, int64_t high, int64_t wide)
      : blocks(blocks),
        rows(rows),
        x_rows((rows - 1) * stride + 3),
        width(grad.width),
        x_width(x.width + 2),
        pixel(high * kImages),
        x_pixel(wide * kImages),
        grad_tiles(at::empty({blocks * rows * width * pixel}, at::kBFloat16)),
        x_tiles(at::empty({blocks * x_rows * x_width * x_pixel}, at::kBFloat16)) {
    for (int64_t row = 0; row < blocks * x_rows; ++row) {
      std::fill_n(x_at(0, row), x_pixel, Bf16(0));
      std::fill_n(x_at(0, row) + (x_width - 1) * x_pixel, x_pixel, Bf16(0));
    }
  }
  Bf16* grad_at(int64_t block, int64_t row) const {
    return mutable_data_of(grad_tiles) + (block * rows + row) * width * pixel;
  }
  Bf16* x_at(int64_t block, int64_t row) const {
    return mutable_data_of(x_tiles) + (block * x_rows + row) * x_width * x_pixel;
  }
};

}  // namespace

at::Tensor weight_gradient(const at::Tensor& grad_maps, const at::Tensor& x_maps, int64_t stride) {
  const Maps grad(grad_maps), x(x_maps);
  const int64_t outputs = grad.channels, inputs = x.channels;
  const at::Tensor result = at::empty({outputs, inputs, 3, 3}, x_maps.options(), kLayout);
  if (grad_maps.numel() == 0) return result.zero_();
  const int64_t high = part_of(outputs), wide = part_of(inputs), across = inputs / wide;
  const int64_t parts = across * (outputs / high), of_tap = high * wide, of_part = 9 * of_tap;
  const bool both = wide % 32 == 0 && high % 32 == 0;  // tiles are taken two by two

  // Units stay in cache for all their sums. Chunks of units have sums of their own, which are added in their order, and
  // cut by the shape alone: the same bits for any number of threads.
  const int64_t pixels = (1 << 14) / (high + wide);
  const int64_t rows = std::clamp<int64_t>(pixels / grad.width, 1, grad.height);
  const int64_t blocks = rows == grad.height ? std::max<int64_t>(pixels / (rows * grad.width), 1) : 1;
  const int64_t all_blocks = ceil_div(x.images, kImages), down = ceil_div(grad.height, rows);
  const int64_t units = ceil_div(all_blocks, blocks) * down;
  const int64_t chunk = ceil_div(units, std::clamp<int64_t>((1 << 17) / (inputs * outputs), 1, 16));
  const int64_t chunks = ceil_div(units, chunk);
  const at::Tensor sums = at::empty({chunks, parts, of_part}, at::kFloat);
  float* const sum = sums.mutable_data_ptr<float>();

  at::parallel_for(0, chunks * parts, 1, [&](int64_t begin, int64_t end) {
    const Tiles tiles;
    const Unit at(blocks, rows, stride, grad, x, high, wide);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index % parts, o = part / across * high, i = part % across * wide;
      const int64_t first_unit = index / parts * chunk, last_unit = std::min(units, first_unit + chunk);
      for (int64_t unit = first_unit; unit < last_unit; ++unit) {
        const int64_t first = unit / down * blocks, in_blocks = std::min(blocks, all_blocks - first);
        const int64_t y = unit % down * rows, in_rows = std::min(rows, grad.height - y), top = y * stride - 1;
        for (int64_t block = 0; block < in_blocks; ++block) {
          const int64_t image = (first + block) * kImages;
          for (int64_t row = 0; row < in_rows; ++row) grad.pack<true>(image, y + row, o, high, at.grad_at(block, row));
          for (int64_t row = std::max<int64_t>(-top, 0); row < (in_rows - 1) * stride + 3 && top + row < x.height;
               ++row) {
            x.pack<false>(image, top + row, i, wide, at.x_at(block, row) + at.x_pixel);
          }
        }
        // Adds to the sums of some outputs and inputs, from the tiles k and c on, for a tap, or the three of a row.
        const auto add = [&](int64_t k, int64_t c, int64_t r, int64_t s) {
          float* const to = sum + index * of_part + (3 * r + s) * of_tap + (k * (wide / 16) + c) * kSums;
          const Sums of = both ? Sums{to, to + kSums, to + wide / 16 * kSums, to + (wide / 16 + 1) * kSums}
                               : Sums{to, to + of_tap, to + 2 * of_tap, nullptr};
          if (unit == first_unit) {
            zero_sums();
          } else {
            load_sums(of);
          }
          for (int64_t j = 0; j < in_blocks * in_rows; ++j) {
            const int64_t block = j / in_rows, row = j % in_rows;
            const int64_t x_row = row * stride + r;
            if (top + x_row < 0 || top + x_row >= x.height) continue;
            const Bf16* const a = at.grad_at(block, row) + k * kTile;
            const Bf16* const b = at.x_at(block, x_row) + s * at.x_pixel + c * kTile;
            if (both) {
              add_products(a, at.pixel, b, stride * at.x_pixel, at.width);
            } else {
              add_narrow_products(a, at.pixel, b, stride * at.x_pixel, at.x_pixel, at.width);
            }
          }
          store_sums(of);
        };
        const int64_t step = both ? 2 : 1;
        for (int64_t k = 0; k < high / 16; k += step) {
          for (int64_t c = 0; c < wide / 16; c += step) {
            for (int64_t tap = 0; tap < 9; tap += both ? 1 : 3) add(k, c, tap / 3, tap % 3);
          }
        }
      }
    }
  });

  Bf16* const to = mutable_data_of(result);
  at::parallel_for(0, parts * high, 16, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index / high, k = index % high;
      const int64_t o = part / across * high + k, i = part % across * wide;
      for (int64_t tap = 0; tap < 9; ++tap) {
        for (int64_t c = 0; c < wide; c += 16) {
          float* const total = sum + part * of_part + tap * of_tap + (k / 16 * wide + c) * 16 + k % 16 * 16;
          for (int64_t other = 1; other < chunks; ++other) {
            for (int j = 0; j < 16; ++j) total[j] += total[other * parts * of_part + j];
          }
          round16(total, to + (o * 9 + tap) * inputs + i + c);
        }
      }
    }
  });
  return result;
}

}  // namespace resnet_min::amx

#endif

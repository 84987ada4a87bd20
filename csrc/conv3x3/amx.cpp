// 3×3 convolutions of bfloat16 by AMX. Maps are brought into blocks of 32 images, pixel by pixel: a pixel of 32 images
// is rows of A, and the pixels that a tap takes are another place in the block, whatever the stride.
#include "conv3x3/amx.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "vector.h"

#ifdef RESNET_MIN_HAS_AMX
#include "conv3x3/amx_layer.h"

namespace resnet_min::amx {

bool available() {
  static const bool found = instruction_set() == InstructionSet::kAvx512Bf16 && at::cpu::init_amx();
  return found;
}

namespace {

// A weight as B's: [tap][outputs / 32][inputs / 32] of two tiles beside each other.
at::Tensor packed(const at::Tensor& weight, const Layer& layer) {
  const int64_t depth = weight.size(1), row = 9 * depth;
  const int64_t inputs = layer.turned ? weight.size(0) : depth, outputs = layer.turned ? depth : weight.size(0);
  const int64_t across = ceil_div(inputs, 32), down = ceil_div(outputs, 32);
  const bool whole = inputs % 32 == 0 && outputs % 32 == 0;
  const int64_t size = 9 * down * across * 2 * kTile;
  const at::Tensor result = whole ? at::empty({size}, weight.options()) : at::zeros({size}, weight.options());
  const Bf16* const from = data_of(weight);
  Bf16* const to = mutable_data_of(result);
  at::parallel_for(0, outputs / 16, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        for (int64_t i = 0; i < inputs / 16; ++i) {
          const int64_t first = layer.turned ? 16 * (i * row + o) : 16 * (o * row + i);
          pack_weights(from + first + tap * depth, row, layer.turned,
                       to + (((tap * down + o / 2) * across + i / 2) * 2 + o % 2) * kTile + i % 2 * kHalf);
        }
      }
    }
  });
  return result;
}

// Maps [sizes]: the convolution of `from`, or the turned one, by a packed weight.
at::Tensor convolved(const at::Tensor& from, const at::Tensor& weight, at::IntArrayRef sizes, const Layer& layer) {
  const at::Tensor result = at::empty(sizes, from.options(), kLayout);
  if (result.numel() == 0) return result;
  const int64_t images = sizes[0], outputs = sizes[1], height = sizes[2], width = sizes[3];
  const int64_t inputs = from.size(1), from_height = from.size(2), from_width = from.size(3);
  const int64_t channels = ceil_div(inputs, 32) * 32, across = channels / 32, down = ceil_div(outputs, 32);
  // Strides, a cache line more than a power of two; and the rows of output that a weight is read for at a time.
  const int64_t pixel = kImages * channels + 32, out_pixel = kImages * outputs + 32;
  const int64_t group = std::clamp<int64_t>(16 / width, 1, height);
  const int64_t ring = (group - 1) * layer.stride + 3;  // rows of `from` that a group takes, at most

  const int64_t blocks = ceil_div(images, kImages), groups = ceil_div(height, group);
  const int64_t bands = std::clamp<int64_t>(4 * at::get_num_threads() / blocks, 1, groups);
  const int64_t band = ceil_div(groups, bands) * group;
  const Bf16 *const data = data_of(from), *const weights = data_of(weight);
  Bf16* const to = mutable_data_of(result);
  at::parallel_for(0, blocks * bands, 1, [&](int64_t begin, int64_t end) {
    const Tiles tiles;
    const at::Tensor in_block = at::empty({ring * from_width * pixel}, from.options());
    const at::Tensor out_block = at::empty({group * width * out_pixel}, from.options());
    Bf16 *const in = mutable_data_of(in_block), *const out = mutable_data_of(out_block);
    const auto row_at = [&](int64_t row) { return in + row % ring * from_width * pixel; };
    const auto terms_of = [&](int64_t y, int64_t x, int64_t o) {
      Terms terms;
      for (int64_t r = 0; r < 3; ++r) {
        const int64_t row = layer.source(y, r, from_height);
        for (int64_t s = 0; s < 3 && row >= 0; ++s) {
          const int64_t column = layer.source(x, s, from_width);
          if (column < 0) continue;
          terms.a[terms.count] = row_at(row) + column * pixel;
          terms.b[terms.count++] = weights + ((3 * r + s) * down + o) * across * 2 * kTile;
        }
      }
      return terms;
    };
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / bands * kImages, count = std::min(kImages, images - first);
      const int64_t top = item % bands * band, bottom = std::min(top + band, height);
      int64_t packed_to = -1;  // the last row in the ring
      for (int64_t y = top; y < bottom; y += group) {
        const int64_t rows = std::min(group, bottom - y);
        for (int64_t row = y; row < y + rows; ++row) {
          for (int64_t r = 0; r < 3; ++r) {
            const int64_t source = layer.source(row, layer.turned ? 2 - r : r, from_height);
            if (source <= packed_to) continue;
            pack_row(data + (first * from_height + source) * from_width * inputs, from_height * from_width * inputs,
                     count, from_width, inputs, row_at(source), pixel);
            packed_to = source;
          }
        }
        for (int64_t o = 0; o < down; ++o) {
          for (int64_t i = 0; i < rows * width; ++i) {
            pixel_sums(terms_of(y + i / width, i % width, o), channels, out + i * out_pixel + 32 * o, outputs,
                       32 * o + 16 < outputs);
          }
        }
        for (int64_t image = 0; image < count; ++image) {
          Bf16* const map = to + ((first + image) * height + y) * width * outputs;
          for (int64_t i = 0; i < rows * width; ++i) {
            std::memcpy(map + i * outputs, out + i * out_pixel + image * outputs, outputs * sizeof(Bf16));
          }
        }
      }
    }
  });
  return result;
}

}  // namespace

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, int64_t stride) {
  const Layer layer{stride};
  const int64_t height = (x.size(2) + stride - 1) / stride, width = (x.size(3) + stride - 1) / stride;
  return convolved(x, packed(weight, layer), {x.size(0), weight.size(0), height, width}, layer);
}

at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef x_sizes, int64_t stride) {
  const Layer layer{stride, true};
  return convolved(grad, packed(weight, layer), x_sizes, layer);
}

}  // namespace resnet_min::amx

#else  // no such compiler or processor

namespace resnet_min::amx {

bool available() { return false; }
at::Tensor convolution(const at::Tensor& x, const at::Tensor&, int64_t) { return x; }
at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor&, at::IntArrayRef, int64_t) { return grad; }
at::Tensor weight_gradient(const at::Tensor&, const at::Tensor& x, int64_t) { return x; }

}  // namespace resnet_min::amx

#endif

// What the kernels of cuda.cu compute.
//
// The convolution is a matrix product: [pixels of the output] x [window] times [window] x [output channels], where a
// window is all taps times all input channels. Its left matrix is never made: a thread that brings 16 bytes of it into
// shared memory works out which pixel and channels they are. x, residual and out are NHWC, the weight is [O, h, w, C].
#pragma once

#include <type_traits>

#include "conv_bn_relu/cuda_tiles.h"
#include "pack.h"
#include "tensor_core.h"

namespace resnet_min {

// ---- what follows the sums ----

// relu(sums + bias + residual) of adjacent channels, in the sums' precision, rounded once.
template <typename T, typename Sum, int size>
__device__ __forceinline__ void finish(const Sum (&sums)[size], const Pack<T, size>& bias,
                                       const Pack<T, size>& residual, bool relu, T* out) {
  Pack<T, size> result;
#pragma unroll
  for (int i = 0; i < size; ++i) {
    const Sum value = sums[i] + static_cast<Sum>(bias.at[i]) + static_cast<Sum>(residual.at[i]);
    result.at[i] = static_cast<T>(relu && value < 0 ? 0 : value);  // NaN stays
  }
  *reinterpret_cast<Pack<T, size>*>(out) = result;
}

// A thread owns `size` adjacent channels of a pixel, and adds up what the splits made of them, or takes what the
// library did. It reads that and the residual and writes the output, 16 bytes at a time; `sums` may be `out`.
template <typename T, typename Sum, int size>
__device__ __forceinline__ void finish_sums(const Sum* sums, int splits, const T* bias, const T* residual, bool relu,
                                            T* out, int64_t outputs, int channels) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x) * size;
  if (first >= outputs) return;
  Pack<Sum, size> total = load_pack<size>(sums + first);
  if (!std::is_same_v<T, Sum>) {  // the library's are one split
    for (int split = 1; split < splits; ++split) {
      const Pack<Sum, size> part = load_pack<size>(sums + split * outputs + first);
#pragma unroll
      for (int i = 0; i < size; ++i) total.at[i] += part.at[i];
    }
  }
  Pack<T, size> other = {};
  if (residual) other = load_pack<size>(residual + first);
  const unsigned channel = static_cast<unsigned>(first) % static_cast<unsigned>(channels);
  finish(total.at, load_pack<size>(bias + channel), other, relu, out + first);
}

// ---- the product ----

// A block owns a tile of kPixels x kChannels sums over one split of the window. Neighbouring blocks have the same
// pixels and other channels, so that x comes from memory once. Each stage, 32 deep, brings (kPixels + kChannels) * 64
// bytes into one of kStages places in shared memory, three stages ahead of the product, for kPixels * kChannels * 32
// multiplications: a wide tile moves 16 KiB for 2**19, 32 of them a byte, of which L1 has the pixels that an earlier
// tap brought.
// A warp owns kWarpPixels x kWarpChannels of the sums, and reads its rows from shared memory 16 deep at a time, one
// step ahead.
// A thread owns one 16-byte column of every 32nd row, of the pixels and of the filters, on the way in; and on the way
// out, in every 8th row of its warp's part, 8 adjacent channels of 32: it reads 16 bytes of residual and writes 16 of
// output, four threads 64 without a gap. `sums` [splits, pixels, out_channels] is null where there is one split.
template <typename T, typename Tile>
__device__ __forceinline__ void convolve(const T* x, const T* weight, const T* bias, const T* residual, bool relu,
                                         T* out, float* sums, const ConvShape& shape, int stages_per_split,
                                         uint32_t shared) {
  constexpr int kPixelRows = Tile::kPixels / kPassRows, kFilterRows = Tile::kChannels / kPassRows;
  constexpr int kPixelSteps = Tile::kWarpPixels / 16, kFilterSteps = Tile::kWarpChannels / 16;
  constexpr int kWarpColumns = Tile::kChannels / Tile::kWarpChannels;
  constexpr uint32_t kPassBytes = kPassRows * kRowBytes, kFilters = Tile::kPixels * kRowBytes;

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const unsigned columns = (shape.out_channels + Tile::kChannels - 1) / Tile::kChannels;
  const unsigned rows = (shape.pixels + Tile::kPixels - 1) / Tile::kPixels;
  const int split = static_cast<int>(blockIdx.x / columns / rows);
  const int first_pixel = static_cast<int>(blockIdx.x / columns % rows) * Tile::kPixels;
  const int first_channel = static_cast<int>(blockIdx.x % columns) * Tile::kChannels;

  // What this thread brings.
  const int row = thread / kStageChunks, column = thread % kStageChunks;
  Window windows[kPixelRows];
#pragma unroll
  for (int i = 0; i < kPixelRows; ++i) windows[i] = window_of(first_pixel + row + i * kPassRows, shape);
  const int filter = first_channel + filter_of_row(row);
  const uint32_t filter_size = static_cast<uint32_t>(shape.kernel_height * shape.kernel_width * shape.channels);
  const uint32_t filter_offset = static_cast<uint32_t>(filter) * filter_size;
  const uint32_t brought = shared + shared_offset(row, column);
  WindowChunk at = window_chunk(split * stages_per_split * kStageChunks + column, shape);

  const auto bring_stage = [&](uint32_t stage) {
    const uint32_t in_x = offset_in_x(at, shape), in_filter = offset_in_filter(at, shape);
#pragma unroll
    for (int i = 0; i < kPixelRows; ++i) {
      const bool inside = is_inside(windows[i], at, shape);
      copy_through_l1(brought + stage + i * kPassBytes, x + (inside ? windows[i].offset + in_x : 0), inside);
    }
#pragma unroll
    for (int i = 0; i < kFilterRows; ++i) {
      const bool inside = filter + i * kPassRows < shape.out_channels && at.channel() < shape.channels;
      const uint32_t offset = filter_offset + static_cast<uint32_t>(i * kPassRows) * filter_size + in_filter;
      copy_past_l1(brought + stage + kFilters + i * kPassBytes, weight + (inside ? offset : 0), inside);
    }
    commit_copies();
    advance(at, shape);
  };

  // What this lane reads: half a stage, 16 deep, at a time. The halves differ in one bit of the address.
  const int warp_pixel = warp / kWarpColumns * Tile::kWarpPixels;
  const int warp_channel = warp % kWarpColumns * Tile::kWarpChannels;
  const uint32_t pixel_row = shared + warp_pixel * kRowBytes + pixel_matrix_row(lane);
  const uint32_t filter_row = shared + kFilters + warp_channel * kRowBytes + filter_matrix_row(lane);
  uint32_t pixels[2][kPixelSteps][4], filters[2][kFilterSteps][4];
  const auto read_half = [&](uint32_t stage, int half) {
#pragma unroll
    for (int i = 0; i < kPixelSteps; ++i) {
      load_matrices(pixels[half][i], ((pixel_row + stage) ^ (half * 32)) + i * 16 * kRowBytes);
    }
#pragma unroll
    for (int i = 0; i < kFilterSteps; ++i) {
      load_matrices(filters[half][i], ((filter_row + stage) ^ (half * 32)) + i * 16 * kRowBytes);
    }
  };

  float sum[kPixelSteps][2 * kFilterSteps][4] = {};
  const auto multiply_half = [&](int half) {
#pragma unroll
    for (int i = 0; i < kPixelSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kFilterSteps; ++j) {
        const uint32_t (&b)[4] = filters[half][j / 2];
        multiply_add<T>(sum[i][j], pixels[half][i], b[j % 2 * 2], b[j % 2 * 2 + 1]);
      }
    }
  };

  for (int stage = 0; stage < Tile::kStages - 1; ++stage) bring_stage(stage * Tile::kStageBytes);
  wait_for_copies<Tile::kStages - 2>();
  __syncthreads();
  uint32_t read = 0, write = (Tile::kStages - 1) * Tile::kStageBytes;
  const auto next = [](uint32_t stage) {
    return stage == (Tile::kStages - 1) * Tile::kStageBytes ? 0 : stage + Tile::kStageBytes;
  };
  read_half(read, 0);
  // Past the split's end, stages are still brought and never multiplied; past the window's, they are zeros.
  for (int stage = stages_per_split; stage > 0; --stage) {
    read_half(read, 1);
    bring_stage(write);  // where the last stage was: all have read it before the last barrier
    write = next(write);
    multiply_half(0);
    wait_for_copies<Tile::kStages - 2>();
    __syncthreads();
    read = next(read);
    read_half(read, 0);
    multiply_half(1);
  }

  // Four products are 32 channels, of which this lane has 8 adjacent ones in two rows.
  const int last_pixel = shape.pixels - 1, pixel = first_pixel + warp_pixel + lane / 4;
#pragma unroll
  for (int group = 0; group < kFilterSteps / 2; ++group) {
    const int channel = first_channel + warp_channel + 32 * group + 8 * (lane % 4);
    if (channel >= shape.out_channels) continue;
    const auto index = [&](int i) { return static_cast<int64_t>(pixel + 8 * i) * shape.out_channels + channel; };
    const auto values = [&](int i) {
      Pack<float, 8> values;
#pragma unroll
      for (int c = 0; c < 8; ++c) values.at[c] = sum[i / 2][4 * group + c / 2][i % 2 * 2 + c % 2];
      return values;
    };
    if (sums) {
      float* part = sums + static_cast<int64_t>(split) * shape.pixels * shape.out_channels;
#pragma unroll
      for (int i = 0; i < 2 * kPixelSteps; ++i) {
        if (pixel + 8 * i <= last_pixel) *reinterpret_cast<Pack<float, 8>*>(part + index(i)) = values(i);
      }
      continue;
    }
    Pack<T, 8> others[2 * kPixelSteps] = {};
    if (residual) {
#pragma unroll
      for (int i = 0; i < 2 * kPixelSteps; ++i) {
        if (pixel + 8 * i <= last_pixel) others[i] = load_pack<8>(residual + index(i));
      }
    }
    const Pack<T, 8> biases = load_pack<8>(bias + channel);
#pragma unroll
    for (int i = 0; i < 2 * kPixelSteps; ++i) {
      if (pixel + 8 * i <= last_pixel) finish(values(i).at, biases, others[i], relu, out + index(i));
    }
  }
  wait_for_copies<0>();  // the last ones, of no use: none is to write to shared memory after the block
}

}  // namespace resnet_min

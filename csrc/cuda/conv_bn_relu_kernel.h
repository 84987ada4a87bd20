// The kernels of conv_bn_relu.cu, apart from their launch so that a test can also run them on a CPU.
//
// The convolution is a matrix product: [pixels of the output] x [window] times [window] x [output channels], where a
// window is all taps times all input channels. Its left matrix is never made: a thread that brings 16 bytes of it into
// shared memory works out which pixel and channels they are. x, residual and out are NHWC, the weight is [O, h, w, C].
#pragma once

#include <algorithm>

#include "tensor_core.h"

namespace resnet_min {

constexpr int kConvThreads = 128;
constexpr int kChunk = 8;                               // channels in 16 bytes: what one copy brings
constexpr int kStageChunks = 4;                         // of a row, in a stage of the pipeline: 32 channels
constexpr int kRowBytes = 16 * kStageChunks;            // a row of either matrix in shared memory
constexpr int kPassRows = kConvThreads / kStageChunks;  // rows that all threads bring with a copy each
constexpr int kFewChannels = kChunk * kStageChunks;     // from here on a stage is 32 channels of one tap

// What a block computes, and what each of its four warps does of it.
template <int pixels, int channels, int warp_pixels, int warp_channels, int blocks_per_sm>
struct Tile {
  static constexpr int kPixels = pixels, kChannels = channels;
  static constexpr int kWarpPixels = warp_pixels, kWarpChannels = warp_channels;
  static constexpr int kBlocksPerSm = blocks_per_sm;
  static constexpr int kStages = 4;
  static constexpr int kStageBytes = (pixels + channels) * kRowBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(pixels / warp_pixels * (channels / warp_channels) * 32 == kConvThreads, "four warps cover the tile");
  static_assert(pixels % kPassRows == 0 && channels % kPassRows == 0, "passes cover the tile");
  static_assert(warp_pixels % 16 == 0 && warp_channels % 32 == 0, "instructions and stores cover the warp's part");
};

// A warp reads (64 + 64) rows of shared memory for 64 x 64 sums: of a smaller part the reads, not the sums, take the
// time. The narrow one is for few channels and for few pixels, where many blocks matter more.
using WideTile = Tile<128, 128, 64, 64, 2>;
using TallTile = Tile<256, 64, 64, 64, 2>;
using NarrowTile = Tile<128, 32, 32, 32, 4>;

// A window's chunks go block by block of up to 32 channels, tap by tap in a block, so that the taps of a block find
// most of their pixels in L1. Where there are fewer than 32, a stage has chunks of several taps.
struct ConvShape {
  int height, width, channels;  // of x; channels are a multiple of 8
  int kernel_height, kernel_width, stride, padding;
  int out_height, out_width, out_channels;
  int pixels;                              // of the output, all images
  int chunks_per_tap;                      // in a block
  int stages;                              // of the whole window
  int chunk_step, tap_x_step, tap_y_step;  // how far it is from a stage to the next
};

inline ConvShape complete(ConvShape shape) {
  const int blocks = (shape.channels + kFewChannels - 1) / kFewChannels;
  shape.chunks_per_tap = std::min(shape.channels / kChunk, kStageChunks);
  const int chunks = blocks * shape.kernel_height * shape.kernel_width * shape.chunks_per_tap;
  shape.stages = (chunks + kStageChunks - 1) / kStageChunks;
  shape.chunk_step = kStageChunks % shape.chunks_per_tap;
  shape.tap_x_step = kStageChunks / shape.chunks_per_tap % shape.kernel_width;
  shape.tap_y_step = kStageChunks / shape.chunks_per_tap / shape.kernel_width;
  return shape;
}

// ---- which tile, and how many splits ----

enum class TileKind { kWide, kTall, kNarrow };

// The grid: tiles of kind `tile`, times `splits` of the window of `stages_per_split` each.
struct ConvPlan {
  TileKind tile;
  int splits, stages_per_split;
};

template <typename Tile>
int64_t count_tiles(const ConvShape& shape) {
  const int64_t rows = (shape.pixels + Tile::kPixels - 1) / Tile::kPixels;
  return rows * ((shape.out_channels + Tile::kChannels - 1) / Tile::kChannels);
}

// The large tile that covers the channels with less waste, with the window split to fill the GPU, by at most 8 and into
// no less than 8 stages. Where that is less than half full, many narrow ones, split likewise.
inline ConvPlan plan_conv(const ConvShape& shape, int multiprocessors) {
  const auto split = [&](TileKind tile, int64_t tiles, int blocks_per_sm) {
    const auto room = static_cast<int>(multiprocessors * blocks_per_sm / tiles);
    const int splits = std::max(1, std::min({8, shape.stages / 8, room}));
    const int stages_per_split = (shape.stages + splits - 1) / splits;
    return ConvPlan{tile, (shape.stages + stages_per_split - 1) / stages_per_split, stages_per_split};
  };
  static_assert(WideTile::kBlocksPerSm == TallTile::kBlocksPerSm, "one rule for both");
  const bool tall = (shape.out_channels + 63) / 64 % 2 == 1;
  const int64_t tiles = tall ? count_tiles<TallTile>(shape) : count_tiles<WideTile>(shape);
  const ConvPlan large = split(tall ? TileKind::kTall : TileKind::kWide, tiles, WideTile::kBlocksPerSm);
  const bool fills = 2 * tiles * large.splits >= multiprocessors * WideTile::kBlocksPerSm;
  if (shape.out_channels > NarrowTile::kChannels && fills) return large;
  return split(TileKind::kNarrow, count_tiles<NarrowTile>(shape), NarrowTile::kBlocksPerSm);
}

// ---- which chunk of which pixel ----

// Where in the window a chunk is. Past the window's end the block is past x's channels.
struct WindowChunk {
  int y, x;   // the tap
  int block;  // of channels: its first
  int chunk;  // in the block

  C10_HOST_DEVICE int channel() const { return block + kChunk * chunk; }
};

C10_HOST_DEVICE inline WindowChunk window_chunk(int index, const ConvShape& shape) {
  const int taps = shape.kernel_height * shape.kernel_width, tap = index / shape.chunks_per_tap;
  return {tap % taps / shape.kernel_width, tap % taps % shape.kernel_width, tap / taps * kFewChannels,
          index % shape.chunks_per_tap};
}

// To the same column of the next stage: window_chunk(index + kStageChunks), without divisions or branches. Past the
// end of a window of fewer than 32 channels y is anything.
C10_HOST_DEVICE inline void advance(WindowChunk& at, const ConvShape& shape) {
  at.chunk += shape.chunk_step;
  const bool next_tap = at.chunk >= shape.chunks_per_tap;
  at.chunk -= next_tap ? shape.chunks_per_tap : 0;
  at.x += shape.tap_x_step + (next_tap ? 1 : 0);
  const bool next_row = at.x >= shape.kernel_width;
  at.x -= next_row ? shape.kernel_width : 0;
  at.y += shape.tap_y_step + (next_row ? 1 : 0);
  const bool next_block = at.y >= shape.kernel_height;
  at.y -= next_block ? shape.kernel_height : 0;
  at.block += next_block ? kFewChannels : 0;
}

// The window of an output pixel: its corner in x, which may lie in the padding. Offsets are taken modulo 2**32: the
// corner's may be negative, that of a pixel inside x is right.
struct Window {
  uint32_t offset;
  int y, x;
};

C10_HOST_DEVICE inline Window window_of(int pixel, const ConvShape& shape) {
  if (pixel >= shape.pixels) return {0, -(1 << 30), 0};  // no tap of it is inside
  const int row = pixel / shape.out_width;
  const int y = row % shape.out_height * shape.stride - shape.padding;
  const int x = pixel % shape.out_width * shape.stride - shape.padding;
  const uint32_t image = static_cast<uint32_t>(row / shape.out_height) * static_cast<uint32_t>(shape.height);
  const uint32_t corner = (image + static_cast<uint32_t>(y)) * static_cast<uint32_t>(shape.width);
  return {(corner + static_cast<uint32_t>(x)) * static_cast<uint32_t>(shape.channels), y, x};
}

C10_HOST_DEVICE inline bool is_inside(const Window& window, const WindowChunk& at, const ConvShape& shape) {
  return static_cast<unsigned>(window.y + at.y) < static_cast<unsigned>(shape.height) &&
         static_cast<unsigned>(window.x + at.x) < static_cast<unsigned>(shape.width) && at.channel() < shape.channels;
}

// From the window's corner to the chunk, in x; from the filter's beginning to the chunk, in the weight.
C10_HOST_DEVICE inline uint32_t offset_in_x(const WindowChunk& at, const ConvShape& shape) {
  const uint32_t pixel = static_cast<uint32_t>(at.y) * static_cast<uint32_t>(shape.width) + static_cast<uint32_t>(at.x);
  return pixel * static_cast<uint32_t>(shape.channels) + static_cast<uint32_t>(at.channel());
}

C10_HOST_DEVICE inline uint32_t offset_in_filter(const WindowChunk& at, const ConvShape& shape) {
  return static_cast<uint32_t>(at.y * shape.kernel_width + at.x) * static_cast<uint32_t>(shape.channels) +
         static_cast<uint32_t>(at.channel());
}

// ---- shared memory and registers ----

// Where in shared memory a chunk of a row is: 8 rows of one column, which load_matrices reads at once, are in different
// banks, and so are the 2 rows that 8 threads write at once.
C10_HOST_DEVICE constexpr uint32_t shared_offset(int row, int column) {
  return static_cast<uint32_t>(row * kRowBytes + (column ^ (row / 2 % kStageChunks)) * 16);
}

// The row and column that a lane names to load_matrices: for 16 pixels x 16 channels, of which it gets multiply_add's
// a, and for 16 filters x 16 channels, of which it gets b of two 8-filter products.
C10_HOST_DEVICE constexpr uint32_t pixel_matrix_row(int lane) { return shared_offset(lane % 16, lane / 16); }
C10_HOST_DEVICE constexpr uint32_t filter_matrix_row(int lane) {
  return shared_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// multiply_add leaves sums of columns 2 * (lane % 4) and the next in a lane. So that a lane's sums of four products
// are of 8 adjacent channels, which are one store, column c of product p is not filter 8 * p + c but this one.
C10_HOST_DEVICE constexpr int filter_of_row(int row) {
  return row / 32 * 32 + row % 8 / 2 * 8 + row % 32 / 8 * 2 + row % 2;
}

template <typename T, int size>
struct alignas(sizeof(T) * size < 16 ? sizeof(T) * size : 16) Pack {
  T at[size];
};

template <typename T, int size>
C10_HOST_DEVICE inline Pack<T, size> load_pack(const T* source) {
  return *reinterpret_cast<const Pack<T, size>*>(source);
}

// ---- what follows the sums ----

#ifdef __CUDACC__
#define RESNET_MIN_DEVICE __device__ __forceinline__
#else
#define RESNET_MIN_DEVICE inline
#endif

// relu(sums + bias + residual) of adjacent channels, in the sums' precision, rounded once.
template <typename T, typename Sum, int size>
RESNET_MIN_DEVICE void finish(const Sum (&sums)[size], const Pack<T, size>& bias, const Pack<T, size>& residual,
                              bool relu, T* out) {
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
RESNET_MIN_DEVICE void finish_sums(const Sum* sums, int splits, const T* bias, const T* residual, bool relu, T* out,
                                   int64_t outputs, int channels) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kConvThreads + threadIdx.x) * size;
  if (first >= outputs) return;
  Sum total[size] = {};
  for (int split = 0; split < splits; ++split) {
    const Pack<Sum, size> part = load_pack<Sum, size>(sums + split * outputs + first);
#pragma unroll
    for (int i = 0; i < size; ++i) total[i] += part.at[i];
  }
  Pack<T, size> other = {};
  if (residual) other = load_pack<T, size>(residual + first);
  const unsigned channel = static_cast<unsigned>(first) % static_cast<unsigned>(channels);
  finish(total, load_pack<T, size>(bias + channel), other, relu, out + first);
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
RESNET_MIN_DEVICE void convolve(const T* x, const T* weight, const T* bias, const T* residual, bool relu, T* out,
                                float* sums, const ConvShape& shape, int stages_per_split, uint32_t shared) {
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
        if (pixel + 8 * i <= last_pixel) others[i] = load_pack<T, 8>(residual + index(i));
      }
    }
    const Pack<T, 8> biases = load_pack<T, 8>(bias + channel);
#pragma unroll
    for (int i = 0; i < 2 * kPixelSteps; ++i) {
      if (pixel + 8 * i <= last_pixel) finish(values(i).at, biases, others[i], relu, out + index(i));
    }
  }
  wait_for_copies<0>();  // the last ones, of no use: none is to write to shared memory after the block
}

}  // namespace resnet_min

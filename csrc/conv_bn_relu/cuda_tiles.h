// What a block of conv_bn_relu's CUDA kernel computes, and where its threads find that in x, in the weight and in
// shared memory: integers alone, which a test can look at one by one.
#pragma once

#include <c10/macros/Macros.h>

#include <algorithm>
#include <cstdint>

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

}  // namespace resnet_min

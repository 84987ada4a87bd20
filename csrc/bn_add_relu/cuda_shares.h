// Which part of a tensor a thread of bn_add_relu's CUDA kernels owns, and how a block adds up what its threads found.
//
// x is rows (pixels) of channels. In all kernels over x a thread owns V adjacent channels, 16 bytes of them where they
// are aligned and one where not, in some of the rows. `lanes` threads side by side, up to a warp, own a tile of
// channels; kThreads / lanes of them below one another read as many rows at once, without a gap where that is all
// channels. The stride from row to row is all blocks of its tile.
#pragma once

#include <c10/macros/Macros.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace resnet_min {

constexpr int kThreads = 256;
constexpr int kMaxLanes = 32;
constexpr int kUnroll = 4;       // rows that a thread has under way
constexpr int kBlocksPerSm = 2;  // at least: 128 registers a thread at most

struct Layout {
  int64_t rows;
  int channels, lanes, tiles, row_blocks;

  // `blocks`: about how many the grid is to have, at most.
  Layout(int64_t rows, int channels, int vector, int blocks) : rows(rows), channels(channels), lanes(1) {
    const int groups = channels / vector;
    while (lanes < groups && lanes < kMaxLanes) lanes *= 2;
    tiles = (groups + lanes - 1) / lanes;
    const int64_t rows_of_block = kThreads / lanes * kUnroll, most = std::max(1, blocks / tiles);
    row_blocks = static_cast<int>(std::clamp<int64_t>((rows + rows_of_block - 1) / rows_of_block, 1, most));
  }

  int grid() const { return tiles * row_blocks; }
};

constexpr int kSumBlocks = 528;     // four for each of 132 multiprocessors; what they write is added up afterwards
constexpr int kApplyBlocks = 2112;  // so many that the last ones to run are a small part

// What a thread owns: channels [channel, channel + V), if there are such, of rows first, first + stride, …
struct Share {
  int row_block, depth, depths;  // depth: the thread's place among the block's `depths` that own the same channels
  int channel;
  bool active;
  int64_t first, stride;
};

template <int V>
C10_DEVICE inline Share share_of(const Layout& layout) {
  Share share;
  const int tile = static_cast<int>(blockIdx.x) % layout.tiles, thread = static_cast<int>(threadIdx.x);
  share.row_block = static_cast<int>(blockIdx.x) / layout.tiles;
  share.depths = kThreads / layout.lanes;
  share.depth = thread / layout.lanes;
  share.channel = (tile * layout.lanes + thread % layout.lanes) * V;
  share.active = share.channel < layout.channels;
  share.first = static_cast<int64_t>(share.row_block) * share.depths + share.depth;
  share.stride = static_cast<int64_t>(layout.row_blocks) * share.depths;
  return share;
}

// Sums are float32, those of float64 itself.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Adds up what a block's threads hold for the same channels: afterwards `mine` is the sum at depth 0. `Figure` has a
// `+=`. Halving leaves the same order of additions for every run.
template <int V, typename Figure>
C10_DEVICE inline void add_up_depths(Figure (&mine)[V], const Share& share, Figure* shared) {
  const int thread = static_cast<int>(threadIdx.x), lanes = kThreads / share.depths;
#pragma unroll
  for (int v = 0; v < V; ++v) shared[v * kThreads + thread] = mine[v];
  for (int half = share.depths / 2; half > 0; half /= 2) {
    __syncthreads();
    if (share.depth < half) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        mine[v] += shared[v * kThreads + thread + half * lanes];
        shared[v * kThreads + thread] = mine[v];
      }
    }
  }
}

}  // namespace resnet_min

// Which part of a tensor a thread of bn_add_relu's CUDA kernels owns, and how a block adds up what its threads found.
//
// x is rows (pixels) of channels. In all kernels over x a thread owns V adjacent channels, 16 bytes of them where they
// are aligned and one where not, in some of the rows. `lanes` threads side by side, up to a warp, own a tile of
// channels; kThreads / lanes of them below one another read as many rows at once, without a gap where that is all
// channels. The stride from row to row is all blocks of its tile.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>

#include "bn_add_relu/cuda_passes.h"

namespace resnet_min {

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

// Of what the row blocks have left for a thread's channel, the sum of its share. Several
// loads are under way at once, for each takes as long as everything else here.
template <typename Figure>
C10_DEVICE inline Figure sum_of_share(const Figure* __restrict__ partial, const Share& share, const Layout& layout) {
  Figure sum = {};
  int64_t row = share.depth;
  const auto at = [&](int u) { return (row + u * share.depths) * layout.channels + share.channel; };
  for (; row + (kFinishUnroll - 1) * share.depths < layout.rows; row += kFinishUnroll * share.depths) {
    Figure figures[kFinishUnroll];
#pragma unroll
    for (int u = 0; u < kFinishUnroll; ++u) figures[u] = partial[at(u)];
#pragma unroll
    for (int u = 0; u < kFinishUnroll; ++u) sum += figures[u];
  }
  for (; row < layout.rows; row += share.depths) sum += partial[at(0)];
  return sum;
}

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

// What bn_add_relu's CUDA kernels are given, and the size of their grids, without torch's headers: nvcc parses a source
// four times.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace resnet_min {

constexpr int kThreads = 256;
constexpr int kMaxLanes = 32;
constexpr int kUnroll = 4;        // rows that a thread has under way
constexpr int kFinishUnroll = 8;  // row blocks' sums that a thread has under way
constexpr int kBlocksPerSm = 2;   // at least: 128 registers a thread at most

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

constexpr int kSumBlocksPerSm = 4;  // of the first pass forward: 64 registers a thread at most
constexpr int kSumBlocks = 528;     // four for each of 132 multiprocessors; what they write is added up afterwards
constexpr int kApplyBlocks = 2112;  // so many that the last ones to run are a small part

// Sums are float32, those of float64 itself.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Values in 16 bytes.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// Tensors are [rows, channels]; what is absent is null. `vectorised`: every row of every tensor starts on 16 bytes,
// and so do the channels' figures; 16 bytes are read and written at a time.
struct Sizes {
  int64_t rows;
  int channels;
  bool vectorised;

  // Of the first pass, which reads T and leaves its sums in `partial`.
  template <typename T>
  Layout sums() const {
    return Layout(rows, channels, vectorised ? kVector<T> : 1, kSumBlocks);
  }
};

// Running statistics, or null.
template <typename A>
struct RunningPointers {
  A *mean, *variance;
  int64_t* batches;
  A momentum;
};

template <typename T>
struct Forward {
  using A = SumOf<T>;
  const T *x, *residual;
  const A *gamma, *beta;
  double eps;
  bool relu;
  T* out;
  A *mean, *invstd;
  RunningPointers<A> running;
  void* partial;
  Sizes sizes;

  static constexpr int kFigures = 3;  // in `partial`, for each channel of each row block of `sizes.sums`
};

// `out`, where it is given, has ReLU's mask, and `grad_residual` is written.
template <typename T>
struct Backward {
  using A = SumOf<T>;
  const T *grad, *x, *out;
  const A *gamma, *beta, *mean, *invstd;
  bool relu;
  T *grad_x, *grad_residual;
  A *grad_gamma, *grad_beta;
  void* partial;
  Sizes sizes;

  static constexpr int kFigures = 2;
};

}  // namespace resnet_min

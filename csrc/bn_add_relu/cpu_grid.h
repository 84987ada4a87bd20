// How bn_add_relu's CPU kernel goes over a channels_last tensor.
//
// x is rows of adjacent columns. With few channels several pixels are one row, so that a row fills vectors; a column
// is a channel, or one of a few that hold a channel's values and are added up at the end. Rows are cut into chunks, by
// the shape alone: sums are added chunk by chunk in their order, and so are the same bits for any number of threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace resnet_min {
namespace {

constexpr int64_t kBlock = 64;  // rows that are summed without carrying over to float64

// Rows of adjacent columns, the first one `first` values into each tensor.
struct Part {
  int64_t first, stride, rows, columns;
};

struct Chunk {
  int64_t first, rows, tail;  // tail: columns of the incomplete row after them
  double count(int64_t column) const { return static_cast<double>(rows + (column < tail)); }
};

struct Grid {
  int64_t channels, columns, rows, tail, chunk_rows, chunks;

  explicit Grid(const at::Tensor& x) : channels(x.size(1)) {
    constexpr int64_t kColumns = 64;  // fill the vectors of `by_columns` four at a time
    columns = channels < kColumns ? std::lcm(channels, kColumns) : channels;
    rows = x.numel() / columns;
    tail = x.numel() % columns;
    // About 64 chunks, for as many threads; not so short that adding them up takes time.
    chunk_rows = std::clamp((rows + 63) / 64, 2 * kBlock, 32 * kBlock);
    chunks = std::max<int64_t>(1, (rows + chunk_rows - 1) / chunk_rows);
  }

  Chunk chunk(int64_t index) const {
    const int64_t first = index * chunk_rows;
    return {first, std::min(chunk_rows, rows - first), index + 1 == chunks ? tail : 0};
  }

  // Calls f(chunk, index) for all of them. `backwards`: what the pass before touched last, and is in cache, comes
  // first.
  template <typename F>
  void over_chunks(bool backwards, const F& f) const {
    constexpr int64_t kGrain = 32768;  // values that are worth another thread
    at::parallel_for(0, chunks, std::max<int64_t>(1, kGrain / (chunk_rows * columns)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t index = backwards ? begin + end - 1 - i : i;
        f(chunk(index), index);
      }
    });
  }

  // Calls f(part) for the chunk's rows, `block` at a time.
  template <typename F>
  void over_blocks(const Chunk& chunk, int64_t block, const F& f) const {
    const int64_t end = chunk.first + chunk.rows;
    for (int64_t r = chunk.first; r < end; r += block) {
      f(Part{r * columns, columns, std::min(block, end - r), columns});
    }
    if (chunk.tail > 0) f(Part{end * columns, columns, 1, chunk.tail});
  }

  // A channel's figure for each of its columns.
  template <typename T>
  std::vector<T> spread(const std::vector<T>& figures) const {
    std::vector<T> result(columns);
    for (int64_t j = 0; j < columns; ++j) result[j] = figures[j % channels];
    return result;
  }

  // The sum of a channel's columns.
  std::vector<double> gathered(const std::vector<double>& figures) const {
    std::vector<double> result(channels);
    for (int64_t j = 0; j < columns; ++j) result[j % channels] += figures[j];
    return result;
  }
};

}  // namespace
}  // namespace resnet_min

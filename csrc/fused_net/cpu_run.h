// Runs a program: segment after segment, step after step, each in items that whichever thread comes next takes.
#pragma once

#include <array>
#include <atomic>
#include <thread>

#include "fused_net/cpu_program.h"
#include "vector.h"

namespace resnet_min {
namespace {

// ---- the loops, for each instruction set ----

// Where a unit's input begins, its output goes, and what is added to it lies: of the first channel.
struct Place {
  const float* in;
  float* out;
  const float* residual;
  int64_t rows, columns;  // of a tile, as far as they are in the map
};

// A panel of the output from `runs` runs of `run` values, each `run_stride` after the one before. The panel begins at
// `channel`; `outputs` of its channels exist, `added` of the residual's.
struct Convolution {
  const Place* places;
  int64_t count, runs, run, run_stride;
  const float *weight, *bias;
  int64_t channel, outputs, added;
  bool relu;
};

// out[point][i] = in[point][i] * weight[point], for `count` rows i of `terms` values and of a panel.
struct Points {
  const float* in;
  int64_t in_stride, points, count, terms;
  const float* weight;
  float* out;
  int64_t out_stride;
};

// What becomes of a panel's points: see Place and Convolution. Strides of the output's and the residual's pixels.
struct TilesOut {
  const Place* places;
  int64_t count, row, pixel, residual_row, residual_pixel;
  const float* bias;
  int64_t channel, outputs, added;
  bool relu;
};

constexpr int kChains = 12;  // of multiply_adds: their latency, 4 or 5 cycles, times the 2 that may start in each

struct Loops {
  int lanes, rows;                          // floats of a vector; rows of a product
  void (*convolve[2])(const Convolution&);  // [vectors of a panel - 1]
  void (*multiply[2])(const Points&);
  // F(2×2, 3×3), F(4×4, 3×3)
  void (*input[2])(const Place* places, int64_t count, int64_t row, int64_t channels, float* to, int64_t stride);
  void (*output[2])(const TilesOut&, const float* from, int64_t stride, int64_t panel);
  // Over rows × columns pixels, the rows `row` apart.
  void (*max_pool)(const float* from, int64_t rows, int64_t columns, int64_t row, int64_t channels, float* to);
  void (*mean_pool)(const float* from, int64_t rows, int64_t columns, int64_t row, int64_t channels, float* to);
  float (*multiply_adds)(int64_t rounds, float factor);
};

constexpr int64_t kMostUnits = 96;  // of a block
constexpr int64_t kTerms = 256;     // that a product adds before the next rows: their weights fit into the first cache

#define RESNET_MIN_LOOPS "fused_net/cpu_loops.h"
#include "vector.h"

const Loops& loops() { return RESNET_MIN_CHOSEN(kLoops); }

// ---- how a step is cut ----

// Blocks of units, whose panels are in `shares` parts; an item is a block's part.
struct Cut {
  int64_t units, block, shares;
  int64_t items() const { return ceil_div(units, block) * shares; }
};

// For `threads` to share.
inline Cut cut(const Step& step, int64_t images, int64_t threads) {
  const int64_t units = images * static_cast<int64_t>(step.units.size());
  const int64_t panels = step.packed != nullptr ? step.packed->panels : 1, rows = loops().rows;
  // The points of a block of tiles are to stay in the first cache, or in the second where the weights are large and are
  // to be read for many tiles at a time.
  const int64_t most = step.form == Form::kDirect ? kMostUnits : (step.in.channels < 128 ? 4 : 8) * rows;
  const int64_t wanted = threads == 1 ? 1 : 6 * threads;
  const int64_t fair = ceil_div(ceil_div(units, wanted), rows) * rows;
  int64_t block = std::min(std::clamp(fair, 2 * rows, most), kMostUnits);
  block = std::min(ceil_div(ceil_div(units, ceil_div(units, block)), rows) * rows, kMostUnits);
  const int64_t shares = threads == 1 ? 1 : std::min(panels, ceil_div(wanted, ceil_div(units, block)));
  return {units, block, shares};
}

inline int64_t scratch_floats(const Step& step) {
  if (step.form == Form::kDirect) return 0;
  const int64_t size = tile_of(step.form) + 2;
  return size * size * ((step.in.channels + step.packed->panel) * kMostUnits + 32);
}

// ---- a run ----

struct Images {
  const float* data;
  int64_t image, channel, row, column;  // strides
  const float* second;                  // the other input, in channels_last
};

// What one thread does of a run.
class Worker {
 public:
  Worker(const Program& program, const Images& from, float* batch, float* result, float* own, float* scratch)
      : program_(program), from_(from), batch_(batch), result_(result), own_(own), scratch_(scratch) {}

  // The rows of `count` images, from the first one on, that an item reads.
  void read(int64_t first, int64_t item) const {
    const Map& to = program_.input;
    const int64_t image = item / to.height, y = item % to.height;
    const float* in = from_.data + (first + image) * from_.image + y * from_.row;
    float* out = of(to, first, image) + to.pixel(y, 0);
    for (int64_t x = 0; x < to.width; ++x, in += from_.column, out += to.channels) {
      if (from_.channel == 1) {
        std::copy_n(in, to.channels, out);
      } else {
        for (int64_t c = 0; c < to.channels; ++c) out[c] = in[c * from_.channel];
      }
    }
  }

  void work(const Step& step, const Cut& cut, int64_t first_image, int64_t item) const {
    const int64_t first = item / cut.shares * cut.block, count = std::min(cut.units - first, cut.block);
    if (step.packed == nullptr) return pool(step, first_image, first, count);
    Place places[kMostUnits];
    place(step, first_image, first, count, places);
    const int64_t panels = step.packed->panels, share = item % cut.shares;
    const int64_t begin = panels * share / cut.shares, end = panels * (share + 1) / cut.shares;
    if (step.form == Form::kDirect) {
      convolve(step, places, count, begin, end);
    } else {
      convolve_tiles(step, places, count, begin, end);
    }
  }

 private:
  // A map of a thread has only those images that the thread is at.
  float* of(const Map& map, int64_t first, int64_t image) const {
    if (map.in == Map::In::kThread) return own_ + map.at + image * map.image();
    float* const maps = map.in == Map::In::kBatch    ? batch_ + map.at
                        : map.in == Map::In::kResult ? result_
                                                     : const_cast<float*>(from_.second);  // nothing writes to it
    return maps + (first + image) * map.image();
  }

  void place(const Step& step, int64_t first_image, int64_t first, int64_t count, Place* places) const {
    const int64_t each = static_cast<int64_t>(step.units.size());
    for (int64_t image = first / each, index = first % each; count > 0; ++image, index = 0) {
      const float* in = of(step.in, first_image, image);
      float* out = of(step.out, first_image, image);
      const float* residual = step.residual ? of(*step.residual, first_image, image) : out;
      for (; index < each && count > 0; ++index, --count) {
        const Unit& unit = step.units[index];
        *places++ = {in + unit.in, out + unit.out, residual + unit.residual, unit.rows, unit.columns};
      }
    }
  }

  // How many of a map's channels are in a panel.
  static int64_t inside(int64_t channels, int64_t panel, int64_t width) {
    return std::clamp<int64_t>(channels - panel * width, 0, width);
  }
  static int64_t added(const Step& step, int64_t panel) {
    return step.residual ? inside(step.residual->channels, panel, step.packed->panel) : 0;
  }

  void convolve(const Step& step, const Place* places, int64_t count, int64_t begin, int64_t end) const {
    const Packed& packed = *step.packed;
    const int64_t run = packed.width * packed.inputs;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t channel = panel * packed.panel;
      loops().convolve[packed.vectors - 1]({places, count, packed.height, run, step.in.row(),
                                            step.weight + channel * packed.height * run, packed.bias.data() + channel,
                                            channel, inside(packed.outputs, panel, packed.panel), added(step, panel),
                                            step.layer.relu});
    }
  }

  void convolve_tiles(const Step& step, const Place* places, int64_t count, int64_t begin, int64_t end) const {
    const Packed& packed = *step.packed;
    const int64_t form = step.form == Form::kWinograd4, size = tile_of(step.form) + 2, points = size * size;
    const int64_t channels = packed.inputs, every = step.layer.residual_stride;
    // A cache line more than the points need: strides of many pages would put them all into the same lines.
    const int64_t in_stride = count * channels + 16, out_stride = count * packed.panel + 16;
    float* const products = scratch_ + points * in_stride;
    loops().input[form](places, count, step.in.row(), channels, scratch_, in_stride);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t channel = panel * packed.panel;
      loops().multiply[packed.vectors - 1]({scratch_, in_stride, points, count, channels,
                                            step.weight + channel * points * channels, products, out_stride});
      TilesOut out{places,
                   count,
                   step.out.row(),
                   step.out.channels,
                   0,
                   0,
                   packed.bias.data() + channel,
                   channel,
                   inside(packed.outputs, panel, packed.panel),
                   added(step, panel),
                   step.layer.relu};
      if (step.residual) {
        out.residual_row = step.residual->row() * every;
        out.residual_pixel = step.residual->channels * every;
      }
      loops().output[form](out, products, out_stride, packed.panel);
    }
  }

  void pool(const Step& step, int64_t first_image, int64_t first, int64_t count) const {
    const Map &in = step.in, &out = step.out;
    const int64_t each = static_cast<int64_t>(step.units.size()), size = step.layer.size;
    for (int64_t i = first; i < first + count; ++i) {
      const float* from = of(in, first_image, i / each);
      float* to = of(out, first_image, i / each) + step.units[i % each].out;
      if (step.layer.kind == Kind::kMeanPool) {
        loops().mean_pool(from, in.height, in.width, in.row(), in.channels, to);
        continue;
      }
      const int64_t top = i % each / out.width * step.layer.stride - step.layer.padding;
      const int64_t left = i % each % out.width * step.layer.stride - step.layer.padding;
      const int64_t y = std::max<int64_t>(top, 0), x = std::max<int64_t>(left, 0);
      loops().max_pool(from + in.pixel(y, x), std::min(top + size, in.height) - y, std::min(left + size, in.width) - x,
                       in.row(), in.channels, to);
    }
  }

  const Program& program_;
  const Images from_;
  float *const batch_, *const result_, *const own_, *const scratch_;
};

// Which items of a step are taken: each thread has a range of them, so that from step to step it goes on where it
// wrote, and takes from the others' when that is done.
class Counts {
 public:
  explicit Counts(int64_t threads) : taken_(threads) {}

  void reset() {
    for (auto& each : taken_) each = 0;
    done_ = 0;
  }

  // Calls `item(i)`, which must not throw, for those of `items` that no other thread took, and waits until all are
  // done.
  template <typename Item>
  void share(int64_t thread, int64_t items, const Item& item) {
    const int64_t ranges = static_cast<int64_t>(taken_.size());
    int64_t mine = 0;
    for (int64_t turn = 0; turn < ranges; ++turn) {
      const int64_t range = (thread + turn) % ranges;
      const int64_t begin = items * range / ranges, end = items * (range + 1) / ranges;
      for (int64_t i; (i = begin + taken_[range].fetch_add(1, std::memory_order_relaxed)) < end; ++mine) item(i);
    }
    if (mine > 0) done_.fetch_add(mine, std::memory_order_acq_rel);
    for (int spins = 0; done_.load(std::memory_order_acquire) < items; ++spins) {
      if (spins < 4096) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  std::vector<std::atomic<int64_t>> taken_;  // of each range
  std::atomic<int64_t> done_{0};
};

}  // namespace
}  // namespace resnet_min

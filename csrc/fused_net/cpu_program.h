// A plan for images of one size: where its maps lie, and from where to where each step reads and writes.
#pragma once

#include <optional>

#include "fused_net/cpu_pack.h"

namespace resnet_min {

// Maps [images][height][width][channels] in a margin of zeros, so that no convolution asks where a map ends.
struct Map {
  // Whose memory it is in: that of one thread, of all that work on a batch, the operator's second input or its result.
  enum class In { kThread, kBatch, kSecond, kResult };

  int64_t channels, height, width;
  int64_t before = 0, after = 0;  // margin: above and to the left; below and to the right
  In in = In::kBatch;
  int64_t images = 0;  // that it has room for
  int64_t at = 0;      // of the first pixel of the first image

  int64_t row() const { return (before + width + after) * channels; }
  int64_t image() const { return (before + height + after) * row(); }
  int64_t pixel(int64_t y, int64_t x) const { return y * row() + x * channels; }
  bool same_form(const Map& other) const {
    return std::tie(channels, height, width, before, after, in, images) ==
           std::tie(other.channels, other.height, other.width, other.before, other.after, other.in, other.images);
  }
};

// What a step works out at a time: a pixel of the output, or a tile of Winograd's. Offsets are from an image's start.
struct Unit {
  int64_t in, out, residual;
  int32_t rows, columns;  // of a tile, as far as they are in the map
};

struct Step {
  Layer layer;
  Form form = Form::kDirect;
  Map in{}, out{};
  std::optional<Map> residual{};
  Packed* packed = nullptr;
  const float* weight = nullptr;
  std::vector<Unit> units{};  // of an image
};

// Steps on maps of one size. Either a thread takes `images` images at a time through all of them, so that their maps
// stay in its cache; or, where images is 0, all threads share each step for all images.
struct Segment {
  size_t begin, end;  // steps
  int64_t images;
};

class Program {
 public:
  // For `images` images and so many threads. `form_of` says how a convolution is best worked out.
  template <typename FormOf>
  Program(const std::vector<Layer>& layers, const std::vector<Sizes>& sizes, std::vector<Packed>& packed,
          int64_t images, int64_t threads, const FormOf& form_of)
      : images(images), threads(threads), inputs_(sizes.size() - layers.size()) {
    for (const Sizes& size : sizes) maps_.push_back({size.channels, size.height, size.width});
    size_t used = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      Step step{layer};
      if (layer.kind == Kind::kConvolution || layer.kind == Kind::kLinear) {
        step.packed = &packed[used++];
        const int64_t added = layer.residual < 0 ? 0 : sizes[layer.residual].channels;
        step.form = form_of(layer, *step.packed, sizes[inputs_ + i], added);
        step.weight = step.packed->in(step.form);
        widen(maps_[layer.source], step, sizes[inputs_ + i]);
      }
      steps.push_back(std::move(step));
    }
    cut_into_segments();
    lay_out();
    for (size_t i = 0; i < steps.size(); ++i) describe(steps[i], made_by(i));
    input = maps_[0];
  }

  int64_t images, threads;
  int64_t thread_size = 0, batch_size = 0;  // floats of all maps
  int64_t floats() const { return batch_size + threads * thread_size; }
  Map input{};
  std::vector<Step> steps;
  std::vector<Segment> segments;

 private:
  // The margin that a convolution reads of its input.
  static void widen(Map& in, const Step& step, const Sizes& out) {
    const Layer& layer = step.layer;
    const int64_t tile = std::max<int64_t>(tile_of(step.form), 1);
    const auto past = [&](int64_t outputs, int64_t inputs, int64_t taps) {
      return (ceil_div(outputs, tile) * tile - 1) * layer.stride + taps - layer.padding - inputs;
    };
    in.before = std::max(in.before, layer.padding);
    in.after = std::max(
        {in.after, past(out.height, in.height, step.packed->height), past(out.width, in.width, step.packed->width)});
  }

  static int64_t pixels(const Map& map) { return map.height * map.width; }
  const Map& made_by(size_t step) const { return maps_[inputs_ + step]; }

  // What reads the images goes with the first convolution, what follows the last one with that.
  void cut_into_segments() {
    size_t last = steps.size();
    while (last > 1 && steps[last - 1].layer.kind != Kind::kConvolution) --last;
    for (size_t begin = 0, i = 1; i <= steps.size(); ++i) {
      if (i < steps.size() && (i >= last || pixels(made_by(i)) == pixels(made_by(begin)))) continue;
      segments.push_back({begin, i, images_at_a_time(begin, i)});
      begin = i;
    }
  }

  int64_t images_at_a_time(size_t begin, size_t end) const {
    // Enough for the weights to be used many times once they are in the cache; but no more than fit in with the maps.
    int64_t enough = 1, largest = 0;
    for (size_t i = begin; i < end; ++i) {
      const int64_t tile = std::max<int64_t>(tile_of(steps[i].form), 1);
      const int64_t units = ceil_div(made_by(i).height, tile) * ceil_div(made_by(i).width, tile);
      if (steps[i].layer.kind == Kind::kConvolution) enough = std::max(enough, ceil_div(kUnits, units));
      largest = std::max(largest, made_by(i).image());
    }
    const int64_t wanted = std::max(enough, kCache / (3 * largest));
    if (threads == 1) return std::min(wanted, images);
    if (enough * threads > images) return 0;
    const int64_t rounds = ceil_div(images, wanted * threads);
    return ceil_div(images, rounds * threads);
  }

  // A place for each map. Those of one form share places when their times differ, and only those: a margin stays zero.
  void lay_out() {
    std::vector<size_t> last_use(maps_.size(), 0);  // of a value, by which step
    std::vector<Segment> of_step(steps.size());
    for (const Segment& segment : segments) std::fill(&of_step[segment.begin], &of_step[segment.end - 1] + 1, segment);
    for (size_t i = 0; i < steps.size(); ++i) {
      last_use[steps[i].layer.source] = i;
      if (steps[i].layer.residual >= 0) last_use[steps[i].layer.residual] = i;
    }
    std::vector<Map> free;
    for (size_t value = 0; value < maps_.size(); ++value) {
      Map& map = maps_[value];
      const Segment made_in = of_step[value < inputs_ ? 0 : value - inputs_];
      const bool of_thread = made_in.images > 0 && last_use[value] < made_in.end;
      map.in = value + 1 == maps_.size()      ? Map::In::kResult
               : value > 0 && value < inputs_ ? Map::In::kSecond
               : of_thread                    ? Map::In::kThread
                                              : Map::In::kBatch;
      map.images = of_thread ? made_in.images : images;
      const auto found = std::find_if(free.begin(), free.end(), [&](const Map& m) { return m.same_form(map); });
      if (found != free.end()) {
        map.at = found->at;
        free.erase(found);
      } else if (map.in == Map::In::kThread || map.in == Map::In::kBatch) {
        int64_t& size = of_thread ? thread_size : batch_size;
        map.at = size + map.pixel(map.before, map.before);
        size += ceil_div(map.images * map.image(), 16) * 16 + 16;  // a cache line apart
      }
      for (size_t earlier = 0; value >= inputs_ && earlier < value; ++earlier) {
        if (last_use[earlier] == value - inputs_) free.push_back(maps_[earlier]);
      }
    }
  }

  void describe(Step& step, const Map& out) const {
    const Layer& layer = step.layer;
    step.in = maps_[layer.source];
    step.out = out;
    if (layer.residual >= 0) step.residual = maps_[layer.residual];
    const int64_t tile = std::max<int64_t>(tile_of(step.form), 1), every = layer.residual_stride;
    for (int64_t y = 0; y < step.out.height; y += tile) {
      for (int64_t x = 0; x < step.out.width; x += tile) {
        Unit unit{};
        unit.in = step.in.pixel(y * layer.stride - layer.padding, x * layer.stride - layer.padding);
        unit.out = step.out.pixel(y, x);
        if (step.residual) unit.residual = step.residual->pixel(y * every, x * every);
        unit.rows = static_cast<int32_t>(std::min(tile, step.out.height - y));
        unit.columns = static_cast<int32_t>(std::min(tile, step.out.width - x));
        step.units.push_back(unit);
      }
    }
  }

  static constexpr int64_t kUnits = 48;       // for which a weight is read once
  static constexpr int64_t kCache = 3 << 15;  // floats: 384 KiB

  const size_t inputs_;    // of the values; the second one is read where it lies
  std::vector<Map> maps_;  // of each value
};

}  // namespace resnet_min

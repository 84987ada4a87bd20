// The loops of cpu.cpp (see vector.h): the product of a few rows, transforms of Winograd's tiles, pooling.

#include "transforms.h"

// A product keeps kRows × 2 sums in registers, besides the two vectors of weights and the value they are multiplied by.
constexpr int kRows = kBytes == 64 ? 12 : 6;

// The first `count` values, and zeros.
RESNET_MIN_TARGET inline V load_some(const float* from, int64_t count) {
  float values[kLanes] = {};
  for (int64_t i = 0; i < count && i < kLanes; ++i) values[i] = from[i];
  return load(values);
}

RESNET_MIN_TARGET inline void store_some(V v, float* to, int64_t count) {
  float values[kLanes];
  store(v, values);
  for (int64_t i = 0; i < count && i < kLanes; ++i) to[i] = values[i];
}

RESNET_MIN_TARGET inline V relu_of(V v) { return v <= 0 ? V{} : v; }  // NaN stays

// ---- products ----

// A panel's weights are read in parts that stay in the first cache while all rows are multiplied by them. Meanwhile the
// next part is fetched, a bit of it with each row of this one: weights of large layers come from memory, and where the
// processor fetches ahead by itself, it stops at the end of each page.
struct Ahead {
  const float* weight;
  int64_t step;
};

// sum[i] += the sum over j of in[i][j] * weight[j]
template <int rows, int vectors>
RESNET_MIN_TARGET inline __attribute__((always_inline)) void accumulate(V (&sum)[rows][vectors],
                                                                        const float* const (&in)[rows], int64_t begin,
                                                                        int64_t end, const float* weight, Ahead ahead) {
  for (int64_t j = begin; j < end; ++j, weight += vectors * kLanes, ahead.weight += ahead.step) {
    __builtin_prefetch(ahead.weight, 0, 2);
    V factor[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) factor[v] = load(weight + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const float value = in[i][j];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[i][v] += factor[v] * value;
    }
  }
}

// What becomes of sums, the bias among them.
template <int rows, int vectors>
RESNET_MIN_TARGET inline void finish(const V (&sum)[rows][vectors], const Convolution& p, const Place* place) {
  const bool whole = p.outputs >= vectors * kLanes && (p.added == 0 || p.added >= vectors * kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    float* const out = place[i].out + p.channel;
    const float* const residual = place[i].residual + p.channel;
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      V value = sum[i][v];
      const int64_t from = v * kLanes;
      if (whole) {
        if (p.added > 0) value += load(residual + from);
        store(p.relu ? relu_of(value) : value, out + from);
      } else {
        if (p.added > from) value += load_some(residual + from, p.added - from);
        store_some(p.relu ? relu_of(value) : value, out + from, p.outputs - from);
      }
    }
  }
}

// A part of the terms of a convolution's sums.
struct Part {
  int64_t begin, end;  // of each place's input
  const float* weight;
  bool first, last;
};

// Adds a part to the sums of `rows` places. Between parts, sums are kept in `sums`, a panel each. A part is summed by
// itself, for a sum of many terms in a row is less exact.
template <int rows, int vectors>
RESNET_MIN_TARGET inline void convolve_rows(const Convolution& p, const Place* place, const Part& part, Ahead ahead,
                                            float* sums) {
  V sum[rows][vectors] = {};
  const float* in[rows];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) in[i] = place[i].in;
  accumulate<rows, vectors>(sum, in, part.begin, part.end, part.weight, ahead);
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sum[i][v] += load(part.first ? p.bias + v * kLanes : sums + (i * vectors + v) * kLanes);
    }
  }
  if (part.last) return finish<rows, vectors>(sum, p, place);
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(sum[i][v], sums + (i * vectors + v) * kLanes);
  }
}

// Row i of the output: the sum over `terms` values j of in[i][j] * weight[j].
template <int rows, int vectors>
RESNET_MIN_TARGET inline void multiply_rows(const float* first, const float* weight, int64_t terms, float* out,
                                            Ahead ahead) {
  V sum[rows][vectors] = {};
  const float* in[rows];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) in[i] = first + i * terms;
  accumulate<rows, vectors>(sum, in, 0, terms, weight, ahead);
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(sum[i][v], out + (i * vectors + v) * kLanes);
  }
}

// The last rows, fewer than a product has.
template <int rows, int vectors>
RESNET_MIN_TARGET void convolve_rest(const Convolution& p, const Place* place, const Part& part, Ahead ahead,
                                     float* sums, int64_t count) {
  if (count == rows) return convolve_rows<rows, vectors>(p, place, part, ahead, sums);
  if constexpr (rows > 1) convolve_rest<rows - 1, vectors>(p, place, part, ahead, sums, count);
}
template <int rows, int vectors>
RESNET_MIN_TARGET void multiply_rest(const float* in, const float* weight, int64_t terms, float* out, Ahead ahead,
                                     int64_t count) {
  if (count == rows) return multiply_rows<rows, vectors>(in, weight, terms, out, ahead);
  if constexpr (rows > 1) multiply_rest<rows - 1, vectors>(in, weight, terms, out, ahead, count);
}

template <int vectors>
RESNET_MIN_TARGET void convolve(const Convolution& p) {
  constexpr int64_t panel = vectors * kLanes;
  float sums[kMostUnits * panel];
  const int64_t groups = ceil_div(p.count, kRows), step = ceil_div(panel, groups);
  const float* weight = p.weight;
  for (int64_t run = 0; run < p.runs; ++run) {
    for (int64_t done = 0; done < p.run; done += kTerms) {
      const int64_t begin = run * p.run_stride + done, terms = std::min(kTerms, p.run - done);
      const Part part{begin, begin + terms, weight, run == 0 && done == 0, run + 1 == p.runs && done + terms == p.run};
      weight += terms * panel;
      Ahead ahead{weight, step};
      int64_t i = 0;
      for (; i + kRows <= p.count; i += kRows, ahead.weight += terms * step) {
        convolve_rows<kRows, vectors>(p, p.places + i, part, ahead, sums + i * panel);
      }
      if (i < p.count) {
        convolve_rest<kRows - 1, vectors>(p, p.places + i, part, ahead, sums + i * panel, p.count - i);
      }
    }
  }
}

template <int vectors>
RESNET_MIN_TARGET void multiply(const Points& p) {
  constexpr int64_t panel = vectors * kLanes;
  const int64_t groups = ceil_div(p.count, kRows), step = ceil_div(panel, groups);
  for (int64_t point = 0; point < p.points; ++point) {
    const float *in = p.in + point * p.in_stride, *weight = p.weight + point * p.terms * panel;
    float* const out = p.out + point * p.out_stride;
    Ahead ahead{weight + p.terms * panel, step};
    int64_t i = 0;
    for (; i + kRows <= p.count; i += kRows, ahead.weight += p.terms * step) {
      multiply_rows<kRows, vectors>(in + i * p.terms, weight, p.terms, out + i * panel, ahead);
    }
    if (i < p.count) {
      multiply_rest<kRows - 1, vectors>(in + i * p.terms, weight, p.terms, out + i * panel, ahead, p.count - i);
    }
  }
}

// ---- Winograd's transforms of tiles: rows first, then columns ----

template <typename T>
RESNET_MIN_TARGET inline void both_ways(const V (&d)[T::from][T::from], V (&r)[T::to][T::to]) {
  V half[T::to][T::from];
#pragma GCC unroll 8
  for (int j = 0; j < T::from; ++j) {
    V column[T::from], result[T::to];
#pragma GCC unroll 8
    for (int i = 0; i < T::from; ++i) column[i] = d[i][j];
    T::apply(column, result);
#pragma GCC unroll 8
    for (int i = 0; i < T::to; ++i) half[i][j] = result[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < T::to; ++i) T::apply(half[i], r[i]);
}

// From each place's tile [size][size][channels] of the input, its rows `row` apart, to the points.
template <typename T>
RESNET_MIN_TARGET void transform_input(const Place* places, int64_t count, int64_t row, int64_t channels, float* to,
                                       int64_t stride) {
  for (int64_t k = 0; k < count; ++k, to += channels) {
    const float* from = places[k].in;
    for (int64_t c = 0; c < channels; c += kLanes) {
      V d[T::from][T::from], r[T::to][T::to];
#pragma GCC unroll 8
      for (int i = 0; i < T::from; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < T::from; ++j) d[i][j] = load(from + i * row + j * channels + c);
      }
      both_ways<T>(d, r);
#pragma GCC unroll 8
      for (int i = 0; i < T::to; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < T::to; ++j) store(r[i][j], to + (i * T::to + j) * stride + c);
      }
    }
  }
}

// From the points, a panel each, to those pixels of each place's tile that are in the map.
template <typename T>
RESNET_MIN_TARGET void transform_output(const TilesOut& t, const float* from, int64_t stride, int64_t panel) {
  for (int64_t k = 0; k < t.count; ++k, from += panel) {
    const Place& place = t.places[k];
    for (int64_t c = 0; c < t.outputs; c += kLanes) {
      V m[T::from][T::from], r[T::to][T::to];
#pragma GCC unroll 8
      for (int i = 0; i < T::from; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < T::from; ++j) m[i][j] = load(from + (i * T::from + j) * stride + c);
      }
      both_ways<T>(m, r);
      const V bias = load(t.bias + c);
      const bool adds = c < t.added;
      float* const out = place.out + t.channel + c;
      const float* const residual = place.residual + t.channel + c;
#pragma GCC unroll 8
      for (int i = 0; i < T::to; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < T::to; ++j) {
          if (i >= place.rows || j >= place.columns) continue;
          V v = r[i][j] + bias;
          if (adds) v += load(residual + i * t.residual_row + j * t.residual_pixel);
          store(t.relu ? relu_of(v) : v, out + i * t.row + j * t.pixel);
        }
      }
    }
  }
}

// ---- pooling ----

// The largest and the mean of rows × columns pixels, the rows `row` apart, channel by channel; NaN where one is.
RESNET_MIN_TARGET void max_pool(const float* from, int64_t rows, int64_t columns, int64_t row, int64_t channels,
                                float* to) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t there = std::min<int64_t>(channels - c, kLanes);
    V most = load_some(from + c, there);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const float* pixel = from + i * row + j * channels + c;
        const V value = there == kLanes ? load(pixel) : load_some(pixel, there);
        most = (value > most) | (value != value) ? value : most;
      }
    }
    store_some(most, to + c, there);
  }
}

RESNET_MIN_TARGET void mean_pool(const float* from, int64_t rows, int64_t columns, int64_t row, int64_t channels,
                                 float* to) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t there = std::min<int64_t>(channels - c, kLanes);
    V total = {};
    for (int64_t i = 0; i < rows; ++i) {
      V sum = {};
      for (int64_t j = 0; j < columns; ++j) {
        const float* pixel = from + i * row + j * channels + c;
        sum += there == kLanes ? load(pixel) : load_some(pixel, there);
      }
      total += sum;
    }
    store_some(total / static_cast<float>(rows * columns), to + c, there);
  }
}

// ---- what a processor can do ----

// `rounds` multiply-adds in each of kChains vectors, which stay in registers.
RESNET_MIN_TARGET float multiply_adds(int64_t rounds, float factor) {
  V sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = V{} + static_cast<float>(i);  // different, or the compiler makes them one
  for (; rounds > 0; --rounds) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * factor + factor;
  }
  V total = {};
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) total += sum[i];
  return total[0];
}

constexpr Loops kLoops = {
    kLanes,
    kRows,
    {convolve<1>, convolve<2>},
    {multiply<1>, multiply<2>},
    {transform_input<OfInput2>, transform_input<OfInput4>},
    {transform_output<OfOutput2>, transform_output<OfOutput4>},
    max_pool,
    mean_pool,
    multiply_adds,
};

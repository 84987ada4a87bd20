// The four passes on a CPU, two forward and two backward, over channels_last tensors: a batch's statistics are merged
// between them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "bn_add_relu/arithmetic.h"
#include "bn_add_relu/cpu_grid.h"
#include "vector.h"

namespace resnet_min {
namespace {

// ---- the loops' arguments ----

// What T (uint16_t: the bits of a bfloat16) is normalised in, and what a block of its rows is summed in. The sums of a
// block are added in float64. A block has kBlock rows, and values less `shift` or the mean are summed, so float32
// is off by kBlock * 2^-24 at most there, where bfloat16 itself is off by 2^-9.
template <typename T>
struct Types {
  using Apply = float;
  using Sum = float;
};
template <>
struct Types<float> {
  using Apply = float;
  using Sum = double;
};
template <>
struct Types<double> {
  using Apply = double;
  using Sum = double;
};

enum class Mask { kNone, kFromX, kFromOut };  // ReLU's: none, x's normalised value above 0, the output above 0

// sums += x - shift; squares += (x - shift)^2
template <typename T>
struct Sums {
  const T* x;
  const typename Types<T>::Sum* shift;
  double *sums, *squares;
};

// sums += grad; products += grad * (x - mean); where out masks, also masked = grad after the mask
template <typename T>
struct GradientSums {
  const T *grad, *x, *out;
  T* masked;
  const typename Types<T>::Sum* mean;
  const typename Types<T>::Apply *scale, *shift;
  double *sums, *products;
};

// out = relu(x * scale + shift + residual)
template <typename T>
struct Normalise {
  const T *x, *residual;
  T* out;
  const typename Types<T>::Apply *scale, *shift;
};

// grad_x = grad * of_grad + x * of_x + constant
template <typename T>
struct InputGradients {
  const T *grad, *x;
  T* grad_x;
  const typename Types<T>::Apply *scale, *shift, *of_grad, *of_x, *constant;
};

template <typename T>
struct Loops {
  void (*sum)(const Sums<T>&, const Part&);
  void (*sum_gradients[3])(const GradientSums<T>&, const Part&);      // [Mask]
  void (*normalise[2][2])(const Normalise<T>&, const Part&);          // [residual][relu]
  void (*input_gradients[2])(const InputGradients<T>&, const Part&);  // [mask from x]
};

// ---- the loops, for each instruction set ----

#define RESNET_MIN_LOOPS "bn_add_relu/cpu_loops.h"
#include "vector.h"

template <typename T>
const Loops<T>& loops() {
  return RESNET_MIN_CHOSEN(kLoops<T>);
}

// Calls f(T()) for x's T.
template <typename F>
void with_type(const at::Tensor& x, const F& f) {
  if (x.scalar_type() == at::kBFloat16) {
    f(uint16_t());
  } else if (x.scalar_type() == at::kFloat) {
    f(float());
  } else {
    f(double());
  }
}

template <typename T>
const T* values(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <typename T>
T* room(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// ---- the passes ----

// result: float64 [3, channels], the number of values, their mean, the sum of their squared distances from it.
//
// A chunk is summed relative to the mean k of its first 16 rows. Since 16 (k - mean)^2 is at most the sum of its
// squared distances from its mean, summing from k multiplies rounding errors by at most 1 + rows / 16, whatever the
// values; where those rows are like the others, by about 1. The chunks' own distances and those of their means only
// add.
template <typename T>
void moments(const at::Tensor& tensor, const at::Tensor& result) {
  using S = typename Types<T>::Sum;
  const Grid grid(tensor);
  const T* x = values<T>(tensor);
  const int64_t columns = grid.columns;
  // Of a chunk's columns: the sum of their values, then of their squared distances from their mean.
  std::vector<double> partial(2 * columns * grid.chunks);
  grid.over_chunks(false, [&](const Chunk& chunk, int64_t index) {
    double *sums = partial.data() + 2 * columns * index, *squares = sums + columns;
    std::vector<S> shift(columns);
    const Part sample{chunk.first * columns, columns, std::clamp<int64_t>(chunk.rows, 1, 16),
                      chunk.rows > 0 ? columns : chunk.tail};
    const auto sum = loops<T>().sum;
    sum({x, shift.data(), sums, squares}, sample);
    for (int64_t j = 0; j < columns; ++j) {
      shift[j] = static_cast<S>(sums[j] / static_cast<double>(sample.rows));
      sums[j] = squares[j] = 0;
    }
    grid.over_blocks(chunk, kBlock, [&](const Part& part) { sum({x, shift.data(), sums, squares}, part); });
    for (int64_t j = 0; j < columns; ++j) {
      const double count = chunk.count(j);
      const double distances = count == 0 ? 0 : squares[j] - sums[j] * sums[j] / count;
      squares[j] = distances < 0 ? 0 : distances;  // a NaN stays one
      sums[j] += count * static_cast<double>(shift[j]);
    }
  });

  const double count = static_cast<double>(tensor.numel() / grid.channels);
  std::vector<double> total(columns);
  for (int64_t i = 0; i < grid.chunks; ++i) {
    const double* sums = partial.data() + 2 * columns * i;
    for (int64_t j = 0; j < columns; ++j) total[j] += sums[j];
  }
  std::vector<double> means = grid.gathered(total);
  for (double& mean : means) mean /= std::max(count, 1.0);
  double* figures = room<double>(result);
  figures = std::fill_n(figures, grid.channels, count);
  figures = std::copy(means.begin(), means.end(), figures);
  means = grid.spread(means);
  std::fill(total.begin(), total.end(), 0);
  for (int64_t i = 0; i < grid.chunks; ++i) {
    const double *sums = partial.data() + 2 * columns * i, *distances = sums + columns;
    const Chunk chunk = grid.chunk(i);
    for (int64_t j = 0; j < columns; ++j) {
      const double n = chunk.count(j), delta = n == 0 ? 0 : sums[j] / n - means[j];
      total[j] += distances[j] + n * delta * delta;
    }
  }
  const std::vector<double> distances = grid.gathered(total);
  std::copy(distances.begin(), distances.end(), figures);
}

template <typename A>
struct SpreadNormalisation {
  std::vector<A> scale, shift;

  SpreadNormalisation(const Grid& grid, const A* gamma, const A* beta, const A* mean, const A* invstd)
      : scale(grid.columns), shift(grid.columns) {
    for (int64_t j = 0; j < grid.columns; ++j) {
      const int64_t c = j % grid.channels;
      const auto [a, b] = normalisation(gamma[c], beta[c], mean[c], invstd[c]);
      scale[j] = a;
      shift[j] = b;
    }
  }
};

// A channel's figures.
struct Channels {
  const at::Tensor gamma, beta, mean, invstd;

  Channels(const at::Tensor& gamma, const at::Tensor& beta, const at::Tensor& mean, const at::Tensor& invstd)
      : gamma(gamma.contiguous()), beta(beta.contiguous()), mean(mean.contiguous()), invstd(invstd.contiguous()) {}

  template <typename A>
  SpreadNormalisation<A> spread(const Grid& grid) const {
    return {grid, values<A>(gamma), values<A>(beta), values<A>(mean), values<A>(invstd)};
  }
};

template <typename T>
void apply(const at::Tensor& x, const Channels& channels, const at::Tensor& residual, bool relu,
           const at::Tensor& out) {
  const Grid grid(x);
  const auto by = channels.spread<typename Types<T>::Apply>(grid);
  const Normalise<T> args{values<T>(x), values<T>(residual), room<T>(out), by.scale.data(), by.shift.data()};
  const auto loop = loops<T>().normalise[residual.defined()][relu];
  grid.over_chunks(true, [&](const Chunk& chunk, int64_t) {
    grid.over_blocks(chunk, chunk.rows, [&](const Part& part) { loop(args, part); });
  });
}

// result: float64 [2, channels], the sum of grad after ReLU's mask, and of its products with the normalised x.
template <typename T>
void gradient_sums(const at::Tensor& grad, const at::Tensor& x, const Channels& channels, const at::Tensor& out,
                   bool relu, const at::Tensor& masked, const at::Tensor& result) {
  using A = typename Types<T>::Apply;
  using S = typename Types<T>::Sum;
  const Grid grid(x);
  const int64_t columns = grid.columns;
  const auto by = channels.spread<A>(grid);
  const A *means = values<A>(channels.mean), *invstds = values<A>(channels.invstd);
  const std::vector<S> spread_means = grid.spread(std::vector<S>(means, means + grid.channels));
  const Mask mask = !relu ? Mask::kNone : out.defined() ? Mask::kFromOut : Mask::kFromX;
  const auto loop = loops<T>().sum_gradients[static_cast<int>(mask)];
  // Of a chunk's columns: the sum of grad, then of grad * (x - mean).
  std::vector<double> partial(2 * columns * grid.chunks);
  grid.over_chunks(false, [&](const Chunk& chunk, int64_t index) {
    double* sums = partial.data() + 2 * columns * index;
    const GradientSums<T> args{values<T>(grad), values<T>(x),    values<T>(out), room<T>(masked), spread_means.data(),
                               by.scale.data(), by.shift.data(), sums,           sums + columns};
    grid.over_blocks(chunk, kBlock, [&](const Part& part) { loop(args, part); });
  });
  std::vector<double> sums(columns), products(columns);
  for (int64_t i = 0; i < grid.chunks; ++i) {
    const double* chunk = partial.data() + 2 * columns * i;
    for (int64_t j = 0; j < columns; ++j) {
      sums[j] += chunk[j];
      products[j] += chunk[columns + j];
    }
  }
  sums = grid.gathered(sums);
  products = grid.gathered(products);
  double* figures = room<double>(result);
  for (int64_t c = 0; c < grid.channels; ++c) {
    figures[c] = sums[c];
    figures[grid.channels + c] = products[c] * static_cast<double>(invstds[c]);
  }
}

// means: `gradient_sums` of the whole batch, over its number of values. relu: mask grad by x.
template <typename T>
void input_gradients(const at::Tensor& grad, const at::Tensor& x, const Channels& channels, const at::Tensor& means,
                     bool relu, const at::Tensor& grad_x) {
  using A = typename Types<T>::Apply;
  const Grid grid(x);
  const auto by = channels.spread<A>(grid);
  const A *gammas = values<A>(channels.gamma), *mean = values<A>(channels.mean), *invstds = values<A>(channels.invstd);
  const double *mean_grads = values<double>(means), *mean_products = mean_grads + grid.channels;
  std::vector<A> of_grad(grid.columns), of_x(grid.columns), constant(grid.columns);
  for (int64_t j = 0; j < grid.columns; ++j) {
    const int64_t c = j % grid.channels;
    const auto by_c = input_gradient(gammas[c], mean[c], invstds[c], mean_grads[c], mean_products[c]);
    of_grad[j] = by_c.of_grad;
    of_x[j] = by_c.of_x;
    constant[j] = by_c.constant;
  }
  const InputGradients<T> args{values<T>(grad), values<T>(x),   room<T>(grad_x), by.scale.data(),
                               by.shift.data(), of_grad.data(), of_x.data(),     constant.data()};
  const auto loop = loops<T>().input_gradients[relu];
  grid.over_chunks(true, [&](const Chunk& chunk, int64_t) {
    grid.over_blocks(chunk, chunk.rows, [&](const Part& part) { loop(args, part); });
  });
}

}  // namespace
}  // namespace resnet_min

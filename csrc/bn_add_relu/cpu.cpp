// Batch normalisation with the batch's statistics, an addition and a ReLU, forward and backward, for channels_last
// tensors: one pass over the input that sums, and one that computes the output.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>
#include <type_traits>
#include <vector>

#include "bn_add_relu/cpu_grid.h"
#include "bn_add_relu/op.h"
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

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kDouble};

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

// ---- forward ----

// Mean and variance of each channel.
struct Statistics {
  std::vector<double> mean, variance;
};

// A chunk is summed relative to the mean k of its first 16 rows. Since 16 (k - mean)^2 is at most the sum of its
// squared distances from its mean, summing from k multiplies rounding errors by at most 1 + rows / 16, whatever the
// values; where those rows are like the others, by about 1. The chunks' own distances and those of their means only
// add.
template <typename T>
Statistics statistics(const Grid& grid, const T* x) {
  using S = typename Types<T>::Sum;
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

  const double count = static_cast<double>((grid.rows * columns + grid.tail) / grid.channels);
  std::vector<double> total(columns);
  for (int64_t i = 0; i < grid.chunks; ++i) {
    const double* sums = partial.data() + 2 * columns * i;
    for (int64_t j = 0; j < columns; ++j) total[j] += sums[j];
  }
  Statistics result;
  result.mean = grid.gathered(total);
  for (double& mean : result.mean) mean /= count;
  const std::vector<double> means = grid.spread(result.mean);
  std::fill(total.begin(), total.end(), 0);
  for (int64_t i = 0; i < grid.chunks; ++i) {
    const double *sums = partial.data() + 2 * columns * i, *distances = sums + columns;
    const Chunk chunk = grid.chunk(i);
    for (int64_t j = 0; j < columns; ++j) {
      const double n = chunk.count(j), delta = n == 0 ? 0 : sums[j] / n - means[j];
      total[j] += distances[j] + n * delta * delta;
    }
  }
  result.variance = grid.gathered(total);
  for (double& variance : result.variance) variance /= count;
  return result;
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

template <typename T>
void forward(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const at::Tensor& residual,
             double eps, bool relu, const at::Tensor& out, const at::Tensor& mean, const at::Tensor& invstd) {
  using A = typename Types<T>::Apply;
  const Grid grid(x);
  const T* input = static_cast<const T*>(x.const_data_ptr());
  A *means = mean.mutable_data_ptr<A>(), *invstds = invstd.mutable_data_ptr<A>();
  const Statistics stats = statistics(grid, input);
  for (int64_t c = 0; c < grid.channels; ++c) {
    means[c] = static_cast<A>(stats.mean[c]);
    invstds[c] = static_cast<A>(1 / std::sqrt(stats.variance[c] + eps));
  }
  const SpreadNormalisation<A> by(grid, gamma.const_data_ptr<A>(), beta.const_data_ptr<A>(), means, invstds);
  const T* addend = residual.defined() ? static_cast<const T*>(residual.const_data_ptr()) : nullptr;
  const Normalise<T> args{input, addend, static_cast<T*>(out.mutable_data_ptr()), by.scale.data(), by.shift.data()};
  const auto normalise = loops<T>().normalise[addend != nullptr][relu];
  grid.over_chunks(true, [&](const Chunk& chunk, int64_t) {
    grid.over_blocks(chunk, chunk.rows, [&](const Part& part) { normalise(args, part); });
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> bn_add_relu(const at::Tensor& x, const at::Tensor& gamma,
                                                           const at::Tensor& beta,
                                                           const std::optional<at::Tensor>& residual, double eps,
                                                           bool relu) {
  check_bn_add_relu(x, gamma, beta, residual, eps, kDtypes);
  at::Tensor out = at::empty_like(x);
  at::Tensor mean = at::empty({x.size(1)}, gamma.options()), invstd = at::empty_like(mean);
  const auto run = x.scalar_type() == at::kBFloat16 ? forward<uint16_t>
                   : x.scalar_type() == at::kFloat  ? forward<float>
                                                    : forward<double>;
  run(x, gamma.contiguous(), beta.contiguous(), residual ? as_channels_last(*residual) : at::Tensor(), eps, relu, out,
      mean, invstd);
  return {out, mean, invstd};
}

// ---- backward ----

template <typename T>
void backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
              const at::Tensor& mean, const at::Tensor& invstd, const at::Tensor& out, bool relu,
              const at::Tensor& grad_x, const at::Tensor& grad_gamma, const at::Tensor& grad_beta,
              const at::Tensor& grad_residual) {
  using A = typename Types<T>::Apply;
  using S = typename Types<T>::Sum;
  const Grid grid(x);
  const int64_t columns = grid.columns;
  const T *output_grad = static_cast<const T*>(grad.const_data_ptr()),
          *input = static_cast<const T*>(x.const_data_ptr());
  const A *gammas = gamma.const_data_ptr<A>(), *means = mean.const_data_ptr<A>(), *invstds = invstd.const_data_ptr<A>();
  const SpreadNormalisation<A> by(grid, gammas, beta.const_data_ptr<A>(), means, invstds);
  const std::vector<S> spread_means = grid.spread(std::vector<S>(means, means + grid.channels));
  const Mask mask = !relu ? Mask::kNone : out.defined() ? Mask::kFromOut : Mask::kFromX;
  const T* output = out.defined() ? static_cast<const T*>(out.const_data_ptr()) : nullptr;
  T* masked = out.defined() ? static_cast<T*>(grad_residual.mutable_data_ptr()) : nullptr;

  // Of a chunk's columns: the sum of grad, then of grad * (x - mean).
  std::vector<double> partial(2 * columns * grid.chunks);
  const auto sum = loops<T>().sum_gradients[static_cast<int>(mask)];
  grid.over_chunks(false, [&](const Chunk& chunk, int64_t index) {
    double* sums = partial.data() + 2 * columns * index;
    const GradientSums<T> args{output_grad,     input,           output, masked,        spread_means.data(),
                               by.scale.data(), by.shift.data(), sums,   sums + columns};
    grid.over_blocks(chunk, kBlock, [&](const Part& part) { sum(args, part); });
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

  const double count = static_cast<double>(x.numel() / grid.channels);
  std::vector<A> of_grad(grid.channels), of_x(grid.channels), constant(grid.channels);
  A *gamma_grads = grad_gamma.mutable_data_ptr<A>(), *beta_grads = grad_beta.mutable_data_ptr<A>();
  for (int64_t c = 0; c < grid.channels; ++c) {
    products[c] *= static_cast<double>(invstds[c]);
    gamma_grads[c] = static_cast<A>(products[c]);
    beta_grads[c] = static_cast<A>(sums[c]);
    const auto by_c = input_gradient(gammas[c], means[c], invstds[c], sums[c] / count, products[c] / count);
    of_grad[c] = by_c.of_grad;
    of_x[c] = by_c.of_x;
    constant[c] = by_c.constant;
  }
  of_grad = grid.spread(of_grad);
  of_x = grid.spread(of_x);
  constant = grid.spread(constant);

  // The masked gradient, where there is one, needs no mask.
  const InputGradients<T> args{masked ? masked : output_grad,
                               input,
                               static_cast<T*>(grad_x.mutable_data_ptr()),
                               by.scale.data(),
                               by.shift.data(),
                               of_grad.data(),
                               of_x.data(),
                               constant.data()};
  const auto input_gradients = loops<T>().input_gradients[mask == Mask::kFromX];
  grid.over_chunks(true, [&](const Chunk& chunk, int64_t) {
    grid.over_blocks(chunk, chunk.rows, [&](const Part& part) { input_gradients(args, part); });
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> bn_add_relu_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& out, bool relu) {
  check_bn_add_relu_backward(grad, x, gamma, beta, mean, invstd, out, relu, kDtypes);
  at::Tensor grad_x = at::empty_like(x);
  at::Tensor grad_gamma = at::empty({x.size(1)}, gamma.options()), grad_beta = at::empty_like(grad_gamma);
  at::Tensor grad_residual = out ? at::empty_like(x) : at::empty({0}, x.options());
  const auto run = x.scalar_type() == at::kBFloat16 ? backward<uint16_t>
                   : x.scalar_type() == at::kFloat  ? backward<float>
                                                    : backward<double>;
  run(as_channels_last(grad), x, gamma.contiguous(), beta.contiguous(), mean.contiguous(), invstd.contiguous(),
      out ? as_channels_last(*out) : at::Tensor(), relu, grad_x, grad_gamma, grad_beta, grad_residual);
  return {grad_x, grad_gamma, grad_beta, grad_residual};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def(
      "bn_add_relu(Tensor x, Tensor gamma, Tensor beta, Tensor? residual, float eps, bool relu) -> (Tensor out, Tensor "
      "mean, Tensor invstd)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_add_relu_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor invstd, Tensor? out, "
      "bool relu) -> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta, Tensor grad_residual)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) {
  m.impl("bn_add_relu", &bn_add_relu);
  m.impl("bn_add_relu_backward", &bn_add_relu_backward);
}

}  // namespace resnet_min

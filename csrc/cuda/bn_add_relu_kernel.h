// bn_add_relu.cu but for its launches, so that a test can also run it on a CPU.
//
// x is rows (pixels) of channels. In all kernels over x a thread owns V adjacent channels, 16 bytes of them where they
// are aligned and one where not, in some of the rows. `lanes` threads side by side, up to a warp, own a tile of
// channels; kThreads / lanes of them below one another read as many rows at once, without a gap where that is all
// channels. A block goes on in steps of all blocks of its tile.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <initializer_list>
#include <tuple>
#include <type_traits>

#include "bn_add_relu.h"

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

// What a thread owns: channels [channel, channel + V), if there are such, of rows first, first + step, …
struct Share {
  int row_block, depth, depths;  // depth: the thread's place among the block's `depths` that own the same channels
  int channel;
  bool active;
  int64_t first, step;
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
  share.step = static_cast<int64_t>(layout.row_blocks) * share.depths;
  return share;
}

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

template <int V, typename T>
C10_DEVICE inline Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <typename A, int V>
C10_DEVICE inline void load_figures(const A* from, const Share& share, A (&to)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = from[share.channel + v];
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

// ---- forward ----

// The first pass: reads x once, and writes 12 bytes a channel and row block (24 for float64). A thread sums its values
// less its first one, and the squares of that: as that is one of its n values, it is off by n times their spread at
// most, and n is tens. From there on, means and squared distances are merged.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(const T* __restrict__ x, Moments<SumOf<T>>* __restrict__ partial, Layout layout) {
  using A = SumOf<T>;
  __shared__ Moments<A> shared[V * kThreads];
  const Share share = share_of<V>(layout);
  Moments<A> moments[V] = {};
  if (share.active && share.first < layout.rows) {
    A shift[V], sum[V] = {}, square[V] = {};
    const T* from = x + share.channel;
    const Pack<T, V> start = load<V>(from + share.first * layout.channels);
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = static_cast<A>(start.value[v]);
    for (int64_t row = share.first; row < layout.rows; row += kUnroll * share.step) {
      Pack<T, V> packs[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {  // past the end the first row again, which adds nothing
        const int64_t r = row + u * share.step;
        packs[u] = r < layout.rows ? load<V>(from + r * layout.channels) : start;
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A distance = static_cast<A>(packs[u].value[v]) - shift[v];
          sum[v] += distance;
          square[v] = std::fma(distance, distance, square[v]);
        }
      }
    }
    const A count = static_cast<A>((layout.rows - share.first + share.step - 1) / share.step);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A distances = square[v] - sum[v] * (sum[v] / count);
      moments[v] = {count, shift[v] + sum[v] / count, distances < 0 ? 0 : distances};
    }
  }
  add_up_depths(moments, share, shared);
  if (share.active && share.depth == 0) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      partial[static_cast<int64_t>(share.row_block) * layout.channels + share.channel + v] = moments[v];
  }
}

// Merges the row blocks' moments. A block owns 32 channels; a thread owns one of them in every eighth row block.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_moments_kernel(const Moments<A>* __restrict__ partial, A* __restrict__ mean, A* __restrict__ invstd, A eps,
                          Layout layout) {
  __shared__ Moments<A> shared[kThreads];
  const Share share = share_of<1>(layout);
  Moments<A> moments[1] = {};
  if (share.active) {
    for (int64_t row = share.depth; row < layout.rows; row += share.depths) {
      moments[0] += partial[row * layout.channels + share.channel];
    }
  }
  add_up_depths(moments, share, shared);
  if (share.active && share.depth == 0) {
    mean[share.channel] = moments[0].mean;
    invstd[share.channel] = 1 / std::sqrt(moments[0].distances / moments[0].count + eps);
  }
}

// The second pass: reads x and the residual, if there is one, and writes out. It starts at the end, which the first
// pass read last and the L2 cache may still have.
template <typename T, int V, bool residual, bool relu>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const T* __restrict__ x, const T* __restrict__ addend, const SumOf<T>* __restrict__ gamma,
                     const SumOf<T>* __restrict__ beta, const SumOf<T>* __restrict__ mean,
                     const SumOf<T>* __restrict__ invstd, T* __restrict__ out, Layout layout) {
  using A = SumOf<T>;
  const Share share = share_of<V>(layout);
  if (!share.active) return;
  Normalisation<A> by[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int c = share.channel + v;
    by[v] = normalisation(gamma[c], beta[c], mean[c], invstd[c]);
  }
  for (int64_t row = layout.rows - 1 - share.first; row >= 0; row -= kUnroll * share.step) {
    Pack<T, V> packs[kUnroll], addends[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.step, at = r * layout.channels + share.channel;
      if (r < 0) continue;
      packs[u] = load<V>(x + at);
      if (residual) addends[u] = load<V>(addend + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.step;
      if (r < 0) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A value = by[v].of(static_cast<A>(packs[u].value[v]));
        if (residual) value += static_cast<A>(addends[u].value[v]);
        if (relu) value = masked(value, value);
        packs[u].value[v] = static_cast<T>(value);
      }
      *reinterpret_cast<Pack<T, V>*>(out + r * layout.channels + share.channel) = packs[u];
    }
  }
}

// ---- backward ----

// Of a channel: the sums of grad, and of grad * (x - mean).
template <typename A>
struct GradientSums {
  A grad, product;
  C10_HOST_DEVICE void operator+=(const GradientSums& other) {
    grad += other.grad;
    product += other.product;
  }
};

enum class Mask { kNone, kFromX, kFromOut };  // ReLU's: none, x's normalised value above 0, the output above 0

// The first pass: reads grad, x and, where it has ReLU's mask, out; writes 8 bytes a channel and row block (16 for
// float64) and, with out, the masked gradient, which is the residual's.
template <typename T, int V, Mask mask>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    gradient_sums_kernel(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ out,
                         const SumOf<T>* __restrict__ gamma, const SumOf<T>* __restrict__ beta,
                         const SumOf<T>* __restrict__ mean, const SumOf<T>* __restrict__ invstd,
                         T* __restrict__ masked_grad, GradientSums<SumOf<T>>* __restrict__ partial, Layout layout) {
  using A = SumOf<T>;
  constexpr int kRows = mask == Mask::kFromOut ? kUnroll / 2 : kUnroll;  // with three tensors, half of each
  __shared__ GradientSums<A> shared[V * kThreads];
  const Share share = share_of<V>(layout);
  GradientSums<A> sums[V] = {};
  if (share.active) {
    A means[V];
    Normalisation<A> by[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int c = share.channel + v;
      means[v] = mean[c];
      if (mask == Mask::kFromX) by[v] = normalisation(gamma[c], beta[c], means[v], invstd[c]);
    }
    for (int64_t row = share.first; row < layout.rows; row += kRows * share.step) {
      Pack<T, V> grads[kRows], packs[kRows], outs[kRows];
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const int64_t r = row + u * share.step, at = r * layout.channels + share.channel;
        if (r >= layout.rows) continue;
        grads[u] = load<V>(grad + at);
        packs[u] = load<V>(x + at);
        if (mask == Mask::kFromOut) outs[u] = load<V>(out + at);
      }
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const int64_t r = row + u * share.step;
        if (r >= layout.rows) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A value = static_cast<A>(packs[u].value[v]);
          A g = static_cast<A>(grads[u].value[v]);
          if (mask == Mask::kFromX) g = masked(g, by[v].of(value));
          if (mask == Mask::kFromOut) {
            g = masked(g, static_cast<A>(outs[u].value[v]));
            grads[u].value[v] = static_cast<T>(g);
          }
          sums[v].grad += g;
          sums[v].product = std::fma(g, value - means[v], sums[v].product);
        }
        if (mask == Mask::kFromOut) {
          *reinterpret_cast<Pack<T, V>*>(masked_grad + r * layout.channels + share.channel) = grads[u];
        }
      }
    }
  }
  add_up_depths(sums, share, shared);
  if (share.active && share.depth == 0) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      partial[static_cast<int64_t>(share.row_block) * layout.channels + share.channel + v] = sums[v];
  }
}

// Adds up the row blocks' sums. A block owns 32 channels; a thread owns one of them in every eighth row block.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_gradient_sums_kernel(const GradientSums<A>* __restrict__ partial, const A* __restrict__ invstd,
                                A* __restrict__ grad_gamma, A* __restrict__ grad_beta, Layout layout) {
  __shared__ GradientSums<A> shared[kThreads];
  const Share share = share_of<1>(layout);
  GradientSums<A> sums[1] = {};
  if (share.active) {
    for (int64_t row = share.depth; row < layout.rows; row += share.depths) {
      sums[0] += partial[row * layout.channels + share.channel];
    }
  }
  add_up_depths(sums, share, shared);
  if (share.active && share.depth == 0) {
    grad_gamma[share.channel] = sums[0].product * invstd[share.channel];
    grad_beta[share.channel] = sums[0].grad;
  }
}

// The second pass: reads grad (already masked, where out had the mask) and x, writes grad_x. It starts at the end.
template <typename T, int V, bool mask>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    input_gradient_kernel(const T* __restrict__ grad, const T* __restrict__ x, const SumOf<T>* __restrict__ gamma,
                          const SumOf<T>* __restrict__ beta, const SumOf<T>* __restrict__ mean,
                          const SumOf<T>* __restrict__ invstd, const SumOf<T>* __restrict__ grad_gamma,
                          const SumOf<T>* __restrict__ grad_beta, T* __restrict__ grad_x, int64_t values,
                          Layout layout) {
  using A = SumOf<T>;
  const Share share = share_of<V>(layout);
  if (!share.active) return;
  Normalisation<A> by[V];
  InputGradient<A> gradient[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int c = share.channel + v;
    const A count = static_cast<A>(values);
    if (mask) by[v] = normalisation(gamma[c], beta[c], mean[c], invstd[c]);
    gradient[v] = input_gradient(gamma[c], mean[c], invstd[c], grad_beta[c] / count, grad_gamma[c] / count);
  }
  for (int64_t row = layout.rows - 1 - share.first; row >= 0; row -= kUnroll * share.step) {
    Pack<T, V> grads[kUnroll], packs[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.step, at = r * layout.channels + share.channel;
      if (r < 0) continue;
      grads[u] = load<V>(grad + at);
      packs[u] = load<V>(x + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.step;
      if (r < 0) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A value = static_cast<A>(packs[u].value[v]);
        A g = static_cast<A>(grads[u].value[v]);
        if (mask) g = masked(g, by[v].of(value));
        grads[u].value[v] = static_cast<T>(gradient[v].of(g, value));
      }
      *reinterpret_cast<Pack<T, V>*>(grad_x + r * layout.channels + share.channel) = grads[u];
    }
  }
}

// ---- the operators, but for the launch: launch(kernel, blocks, arguments of the kernel …) ----

constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};

template <typename T>
inline const T* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
inline T* data_to(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Room for so many figures for each channel of each row block.
inline at::Tensor partial_sums(const Layout& layout, int64_t figures, const at::Tensor& like) {
  return at::empty({layout.row_blocks, layout.channels, figures}, like.options());
}

// Of what the row blocks have summed, as rows themselves.
inline Layout finishing(const Layout& layout) { return Layout(layout.row_blocks, layout.channels, 1, 1); }

struct Forward {
  at::Tensor x, gamma, beta, residual;
  double eps;
  bool relu;
  at::Tensor out, mean, invstd;

  template <typename T, int V, typename Launch>
  void run(const Launch& launch) const {
    using A = SumOf<T>;
    const int64_t rows = x.numel() / x.size(1);
    const int channels = static_cast<int>(x.size(1));
    const Layout sums(rows, channels, V, kSumBlocks), applying(rows, channels, V, kApplyBlocks);
    const Layout finish = finishing(sums);
    const at::Tensor partial = partial_sums(sums, 3, mean);
    auto* moments = static_cast<Moments<A>*>(partial.mutable_data_ptr());
    launch(moments_kernel<T, V>, sums.grid(), data_of<T>(x), moments, sums);
    launch(finish_moments_kernel<A>, finish.grid(), moments, data_to<A>(mean), data_to<A>(invstd), static_cast<A>(eps),
           finish);
    const auto normalise = residual.defined()
                               ? (relu ? normalise_kernel<T, V, true, true> : normalise_kernel<T, V, true, false>)
                               : (relu ? normalise_kernel<T, V, false, true> : normalise_kernel<T, V, false, false>);
    launch(normalise, applying.grid(), data_of<T>(x), data_of<T>(residual), data_of<A>(gamma), data_of<A>(beta),
           data_of<A>(mean), data_of<A>(invstd), data_to<T>(out), applying);
  }
};

struct Backward {
  at::Tensor grad, x, gamma, beta, mean, invstd, out;
  bool relu;
  at::Tensor grad_x, grad_gamma, grad_beta, grad_residual;

  template <typename T, int V, typename Launch>
  void run(const Launch& launch) const {
    using A = SumOf<T>;
    const int64_t rows = x.numel() / x.size(1);
    const int channels = static_cast<int>(x.size(1));
    const Layout sums(rows, channels, V, kSumBlocks), applying(rows, channels, V, kApplyBlocks);
    const Layout finish = finishing(sums);
    const at::Tensor partial = partial_sums(sums, 2, mean);
    auto* sum = static_cast<GradientSums<A>*>(partial.mutable_data_ptr());
    const auto sum_gradients = !relu           ? gradient_sums_kernel<T, V, Mask::kNone>
                               : out.defined() ? gradient_sums_kernel<T, V, Mask::kFromOut>
                                               : gradient_sums_kernel<T, V, Mask::kFromX>;
    launch(sum_gradients, sums.grid(), data_of<T>(grad), data_of<T>(x), data_of<T>(out), data_of<A>(gamma),
           data_of<A>(beta), data_of<A>(mean), data_of<A>(invstd), out.defined() ? data_to<T>(grad_residual) : nullptr,
           sum, sums);
    launch(finish_gradient_sums_kernel<A>, finish.grid(), sum, data_of<A>(invstd), data_to<A>(grad_gamma),
           data_to<A>(grad_beta), finish);
    const auto apply = relu && !out.defined() ? input_gradient_kernel<T, V, true> : input_gradient_kernel<T, V, false>;
    launch(apply, applying.grid(), data_of<T>(out.defined() ? grad_residual : grad), data_of<T>(x), data_of<A>(gamma),
           data_of<A>(beta), data_of<A>(mean), data_of<A>(invstd), data_of<A>(grad_gamma), data_of<A>(grad_beta),
           data_to<T>(grad_x), rows, applying);
  }
};

// 16 bytes at a time, where every row of every tensor starts on 16 bytes.
template <typename T, typename Pass, typename Launch>
void run_vectorised(const Pass& pass, const Launch& launch, const at::Tensor& x,
                    std::initializer_list<at::Tensor> tensors) {
  constexpr int kVector = 16 / sizeof(T);
  const bool aligned = x.size(1) % kVector == 0 && std::all_of(tensors.begin(), tensors.end(), [](const auto& tensor) {
                         return !tensor.defined() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
                       });
  if (aligned) {
    pass.template run<T, kVector>(launch);
  } else {
    pass.template run<T, 1>(launch);
  }
}

template <typename Pass, typename Launch>
void run(const Pass& pass, const Launch& launch, const at::Tensor& x, std::initializer_list<at::Tensor> tensors) {
  const auto run_as = x.scalar_type() == at::kBFloat16 ? run_vectorised<at::BFloat16, Pass, Launch>
                      : x.scalar_type() == at::kHalf   ? run_vectorised<at::Half, Pass, Launch>
                      : x.scalar_type() == at::kFloat  ? run_vectorised<float, Pass, Launch>
                                                       : run_vectorised<double, Pass, Launch>;
  run_as(pass, launch, x, tensors);
}

template <typename Launch>
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_by(const Launch& launch, const at::Tensor& x,
                                                          const at::Tensor& gamma, const at::Tensor& beta,
                                                          const std::optional<at::Tensor>& residual, double eps,
                                                          bool relu) {
  check_bn_add_relu(x, gamma, beta, residual, eps, kDtypes);
  const at::Tensor addend = residual ? as_channels_last(*residual) : at::Tensor();
  at::Tensor out = at::empty_like(x), mean = at::empty({x.size(1)}, gamma.options()), invstd = at::empty_like(mean);
  const Forward pass{x, gamma.contiguous(), beta.contiguous(), addend, eps, relu, out, mean, invstd};
  run(pass, launch, x, {x, addend, out});
  return {out, mean, invstd};
}

template <typename Launch>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_by(
    const Launch& launch, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
    const at::Tensor& mean, const at::Tensor& invstd, const std::optional<at::Tensor>& out, bool relu) {
  check_bn_add_relu_backward(grad, x, gamma, beta, mean, invstd, out, relu, kDtypes);
  const at::Tensor output_grad = as_channels_last(grad), output = out ? as_channels_last(*out) : at::Tensor();
  at::Tensor grad_x = at::empty_like(x), grad_gamma = at::empty({x.size(1)}, gamma.options());
  at::Tensor grad_beta = at::empty_like(grad_gamma);
  at::Tensor grad_residual = out ? at::empty_like(x) : at::empty({0}, x.options());
  const Backward pass{
      output_grad, x,      gamma.contiguous(), beta.contiguous(), mean.contiguous(), invstd.contiguous(), output,
      relu,        grad_x, grad_gamma,         grad_beta,         grad_residual};
  run(pass, launch, x, {output_grad, x, output, grad_x, grad_residual});
  return {grad_x, grad_gamma, grad_beta, grad_residual};
}

}  // namespace resnet_min

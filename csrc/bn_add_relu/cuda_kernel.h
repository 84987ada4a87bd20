// The kernels of bn_add_relu, forward and backward.
#pragma once

#include "bn_add_relu/arithmetic.h"
#include "bn_add_relu/cuda_shares.h"
#include "pack.h"

namespace resnet_min {

// ---- forward ----

// The first pass: reads x once, and writes 12 bytes a channel and row block (24 for float64). A thread sums its values
// less its first one, and the squares of that: as that is one of its n values, it is off by n times their spread at
// most, and n is tens. From there on, means and squared distances are merged.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kSumBlocksPerSm)
    moments_kernel(const T* __restrict__ x, Moments<SumOf<T>>* __restrict__ partial, Layout layout) {
  using A = SumOf<T>;
  __shared__ Moments<A> shared[V * kThreads];
  const Share share = share_of<V>(layout);
  Moments<A> moments[V] = {};
  if (share.active && share.first < layout.rows) {
    A shift[V], sum[V] = {}, square[V] = {};
    const T* from = x + share.channel;
    const Pack<T, V> start = load_pack<V>(from + share.first * layout.channels);
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = static_cast<A>(start.at[v]);
    for (int64_t row = share.first; row < layout.rows; row += kUnroll * share.stride) {
      Pack<T, V> packs[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {  // past the end the first row again, which adds nothing
        const int64_t r = row + u * share.stride;
        packs[u] = r < layout.rows ? load_pack<V>(from + r * layout.channels) : start;
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A distance = static_cast<A>(packs[u].at[v]) - shift[v];
          sum[v] += distance;
          square[v] = std::fma(distance, distance, square[v]);
        }
      }
    }
    const A count = static_cast<A>((layout.rows - share.first + share.stride - 1) / share.stride);
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

// Merges the row blocks' moments, and updates the running statistics by them. A block owns 32 channels; a thread owns
// one of them in every eighth row block.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_moments_kernel(const Moments<A>* __restrict__ partial, A* __restrict__ mean, A* __restrict__ invstd,
                          RunningPointers<A> running, A eps, Layout layout) {
  __shared__ Moments<A> shared[kThreads];
  const Share share = share_of<1>(layout);
  Moments<A> moments[1] = {};
  if (share.active) moments[0] = sum_of_share(partial, share, layout);
  add_up_depths(moments, share, shared);
  if (share.active && share.depth == 0) {
    const auto [count, batch_mean, distances] = moments[0];
    mean[share.channel] = batch_mean;
    invstd[share.channel] = inverse_std(distances / count + eps);
    if (running.mean) {
      A *of_mean = running.mean + share.channel, *of_variance = running.variance + share.channel;
      *of_mean = moved(*of_mean, batch_mean, running.momentum);
      *of_variance = moved(*of_variance, distances / (count - 1), running.momentum);
      if (share.channel == 0) ++*running.batches;
    }
  }
}

// The second pass: reads x and the residual, if there is one, and writes out. It starts at the end, which the first
// pass read last and the L2 cache may still have.
template <typename T, int V, bool residual, bool relu>
__global__ void __launch_bounds__(kThreads, residual ? kBlocksPerSm : kBlocksPerSm + 1)
    normalise_kernel(const T* __restrict__ x, const T* __restrict__ addend, const SumOf<T>* __restrict__ gamma,
                     const SumOf<T>* __restrict__ beta, const SumOf<T>* __restrict__ mean,
                     const SumOf<T>* __restrict__ invstd, T* __restrict__ out, Layout layout) {
  using A = SumOf<T>;
  const Share share = share_of<V>(layout);
  if (!share.active) return;
  Normalisation<A> by[V];
  const Pack<A, V> gammas = load_pack<V>(gamma + share.channel), betas = load_pack<V>(beta + share.channel);
  const Pack<A, V> means = load_pack<V>(mean + share.channel), invstds = load_pack<V>(invstd + share.channel);
#pragma unroll
  for (int v = 0; v < V; ++v) by[v] = normalisation(gammas.at[v], betas.at[v], means.at[v], invstds.at[v]);
  for (int64_t row = layout.rows - 1 - share.first; row >= 0; row -= kUnroll * share.stride) {
    Pack<T, V> packs[kUnroll], addends[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.stride, at = r * layout.channels + share.channel;
      if (r < 0) continue;
      packs[u] = load_pack<V>(x + at);
      if (residual) addends[u] = load_pack<V>(addend + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.stride;
      if (r < 0) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A value = by[v].of(static_cast<A>(packs[u].at[v]));
        if (residual) value += static_cast<A>(addends[u].at[v]);
        if (relu) value = masked(value, value);
        packs[u].at[v] = static_cast<T>(value);
      }
      store_pack(packs[u], out + r * layout.channels + share.channel);
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
    const Pack<A, V> means = load_pack<V>(mean + share.channel);
    Normalisation<A> by[V];
    if (mask == Mask::kFromX) {
      const Pack<A, V> gammas = load_pack<V>(gamma + share.channel), betas = load_pack<V>(beta + share.channel);
      const Pack<A, V> invstds = load_pack<V>(invstd + share.channel);
#pragma unroll
      for (int v = 0; v < V; ++v) by[v] = normalisation(gammas.at[v], betas.at[v], means.at[v], invstds.at[v]);
    }
    for (int64_t row = share.first; row < layout.rows; row += kRows * share.stride) {
      Pack<T, V> grads[kRows], packs[kRows], outs[kRows];
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const int64_t r = row + u * share.stride, at = r * layout.channels + share.channel;
        if (r >= layout.rows) continue;
        grads[u] = load_pack<V>(grad + at);
        packs[u] = load_pack<V>(x + at);
        if (mask == Mask::kFromOut) outs[u] = load_pack<V>(out + at);
      }
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const int64_t r = row + u * share.stride;
        if (r >= layout.rows) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A value = static_cast<A>(packs[u].at[v]);
          A g = static_cast<A>(grads[u].at[v]);
          if (mask == Mask::kFromX) g = masked(g, by[v].of(value));
          if (mask == Mask::kFromOut) {
            g = masked(g, static_cast<A>(outs[u].at[v]));
            grads[u].at[v] = static_cast<T>(g);
          }
          sums[v].grad += g;
          sums[v].product = std::fma(g, value - means.at[v], sums[v].product);
        }
        if (mask == Mask::kFromOut) {
          store_pack(grads[u], masked_grad + r * layout.channels + share.channel);
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
  if (share.active) sums[0] = sum_of_share(partial, share, layout);
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
  const A each = 1 / static_cast<A>(values);  // one division, not two a channel
  const Pack<A, V> gammas = load_pack<V>(gamma + share.channel), means = load_pack<V>(mean + share.channel);
  const Pack<A, V> invstds = load_pack<V>(invstd + share.channel);
  const Pack<A, V> grad_gammas = load_pack<V>(grad_gamma + share.channel);
  const Pack<A, V> grad_betas = load_pack<V>(grad_beta + share.channel);
  Pack<A, V> betas = {};
  if (mask) betas = load_pack<V>(beta + share.channel);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (mask) by[v] = normalisation(gammas.at[v], betas.at[v], means.at[v], invstds.at[v]);
    gradient[v] =
        input_gradient(gammas.at[v], means.at[v], invstds.at[v], grad_betas.at[v] * each, grad_gammas.at[v] * each);
  }
  for (int64_t row = layout.rows - 1 - share.first; row >= 0; row -= kUnroll * share.stride) {
    Pack<T, V> grads[kUnroll], packs[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.stride, at = r * layout.channels + share.channel;
      if (r < 0) continue;
      grads[u] = load_pack<V>(grad + at);
      packs[u] = load_pack<V>(x + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = row - u * share.stride;
      if (r < 0) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A value = static_cast<A>(packs[u].at[v]);
        A g = static_cast<A>(grads[u].at[v]);
        if (mask) g = masked(g, by[v].of(value));
        grads[u].at[v] = static_cast<T>(gradient[v].of(g, value));
      }
      store_pack(grads[u], grad_x + r * layout.channels + share.channel);
    }
  }
}

}  // namespace resnet_min

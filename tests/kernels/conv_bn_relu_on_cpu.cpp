// The CUDA kernels of conv_bn_relu, compiled as C++ and run on the CPU, and their arithmetic of addresses, function by
// function: see cuda_on_cpu.h. No torch, so that it compiles in seconds; Python calls it by ctypes.
#include "tensor_core_on_cpu.h"
// After the above, which stands in for what nvcc knows.
#include "conv_bn_relu/cuda_kernel.h"

namespace {

using namespace resnet_min;

template <typename T, typename Tile>
void run(const T* x, const T* weight, const T* bias, const T* residual, bool relu, T* out, float* sums,
         const ConvShape& shape, int splits, int stages_per_split) {
  const auto blocks = static_cast<unsigned>(count_tiles<Tile>(shape) * splits);
  cuda_on_cpu::launch(blocks, kConvThreads, [&] {
    cuda_on_cpu::copies[threadIdx.x].clear();
    convolve<T, Tile>(x, weight, bias, residual, relu, out, splits > 1 ? sums : nullptr, shape, stages_per_split, 0);
  });
  if (splits == 1) return;
  const int64_t outputs = static_cast<int64_t>(shape.pixels) * shape.out_channels;
  cuda_on_cpu::launch((outputs + kConvThreads * 8 - 1) / (kConvThreads * 8), kConvThreads, [&] {
    finish_sums<T, float, 8>(sums, splits, bias, residual, relu, out, outputs, shape.out_channels);
  });
}

template <typename T>
void run_tile(int tile, const void* x, const void* weight, const void* bias, const void* residual, bool relu, void* out,
              float* sums, const ConvShape& shape, int splits, int stages_per_split) {
  const auto call = tile == 0 ? run<T, WideTile> : tile == 1 ? run<T, TallTile> : run<T, NarrowTile>;
  call(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(bias),
       static_cast<const T*>(residual), relu, static_cast<T*>(out), sums, shape, splits, stages_per_split);
}

}  // namespace

extern "C" {

void complete_shape(ConvShape* shape) { *shape = complete(*shape); }

void plan(const ConvShape* shape, int multiprocessors, ConvPlan* plan) { *plan = plan_conv(*shape, multiprocessors); }

int64_t tiles(const ConvShape* shape, int tile) {
  return tile == 0   ? count_tiles<WideTile>(*shape)
         : tile == 1 ? count_tiles<TallTile>(*shape)
                     : count_tiles<NarrowTile>(*shape);
}

// Which elements of x and of a filter each of a window's chunks begins with, by `advance`; -1 for zeros. Returns
// whether `window_chunk` says the same.
bool chunks(const ConvShape* shape, int pixel, int64_t* in_x, int64_t* in_filter) {
  bool same = true;
  const Window window = window_of(pixel, *shape);
  for (int column = 0; column < kStageChunks; ++column) {
    WindowChunk at = window_chunk(column, *shape);
    for (int i = column; i < shape->stages * kStageChunks; i += kStageChunks) {
      const WindowChunk other = window_chunk(i, *shape);
      const bool real = at.channel() < shape->channels;
      same &= real == (other.channel() < shape->channels);
      if (real) same &= at.y == other.y && at.x == other.x && at.block == other.block && at.chunk == other.chunk;
      in_x[i] = in_filter[i] = -1;
      if (is_inside(window, at, *shape)) in_x[i] = static_cast<uint32_t>(window.offset + offset_in_x(at, *shape));
      if (real) in_filter[i] = offset_in_filter(at, *shape);
      advance(at, *shape);
    }
    for (int i = 0; i < 3; ++i, advance(at, *shape)) same &= at.channel() >= shape->channels;  // brought past the end
  }
  return same;
}

int shared_offset_of(int row, int column) { return static_cast<int>(shared_offset(row, column)); }
int filter_of(int row) { return filter_of_row(row); }

// out [16, 16] = a [16, 16] @ b [16, 16].T in one warp, which leaves column 8 * p + c of product p at its filter's.
void multiply(const void* a, const void* b, float* out) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 2; ++column) {
      const auto offset = (row * 2 + column) * 16;
      std::memcpy(cuda_on_cpu::shared_memory + shared_offset(row, column), static_cast<const char*>(a) + offset, 16);
      std::memcpy(cuda_on_cpu::shared_memory + 1024 + shared_offset(row, column), static_cast<const char*>(b) + offset,
                  16);
    }
  }
  cuda_on_cpu::launch(1, 32, [&] {
    const int lane = static_cast<int>(threadIdx.x);
    uint32_t left[4], right[4];
    load_matrices(left, pixel_matrix_row(lane));
    load_matrices(right, 1024 + filter_matrix_row(lane));
    for (int product = 0; product < 2; ++product) {
      float sum[4] = {};
      multiply_add<c10::Half>(sum, left, right[2 * product], right[2 * product + 1]);
      for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 16 + 8 * product + lane % 4 * 2 + i % 2] = sum[i];
    }
  });
}

// What follows the library's convolution, in place.
void finish_in_place(int size, const float* bias, const float* residual, bool relu, float* out, int64_t outputs,
                     int channels) {
  const auto finish = size == 4 ? finish_sums<float, float, 4> : finish_sums<float, float, 1>;
  cuda_on_cpu::launch((outputs + kConvThreads * size - 1) / (kConvThreads * size), kConvThreads,
                      [&] { finish(out, 1, bias, residual, relu, out, outputs, channels); });
}

// Returns how many copies and bank conflicts there were that must not be.
int64_t conv_bn_relu(bool half, int tile, const void* x, int64_t x_bytes, const void* weight, int64_t weight_bytes,
                     const void* bias, const void* residual, bool relu, void* out, float* sums, const ConvShape* shape,
                     int splits, int stages_per_split) {
  cuda_on_cpu::bad_copies = cuda_on_cpu::bank_conflicts = 0;
  cuda_on_cpu::readable = {{static_cast<const char*>(x), static_cast<const char*>(x) + x_bytes},
                           {static_cast<const char*>(weight), static_cast<const char*>(weight) + weight_bytes}};
  const auto call = half ? run_tile<c10::Half> : run_tile<c10::BFloat16>;
  call(tile, x, weight, bias, residual, relu, out, sums, *shape, splits, stages_per_split);
  return cuda_on_cpu::bad_copies + cuda_on_cpu::bank_conflicts;
}

}  // extern "C"

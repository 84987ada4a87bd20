// Which elements the CUDA kernel of conv_bn_relu reads and where it puts them, function by function. No torch and no
// CUDA, so that it compiles in a second; Python calls it by ctypes.
#include "conv_bn_relu/cuda_tiles.h"

using namespace resnet_min;

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

}  // extern "C"

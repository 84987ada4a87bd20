// Where a crop's pixels come from, and how CUDA's blocks share them: integers alone, and nothing of torch's.
#pragma once

#include <c10/macros/Macros.h>

#include <cstdint>

namespace resnet_min {

// Positions [begin, end) of an output row (or column) of `size` pixels come from the image, at `first + stride *
// position`; the others are padding.
struct Span {
  int begin, end, first, stride;
};

// `shift` is the crop's offset less the padding: where its first pixel lies in the image.
C10_HOST_DEVICE inline Span source_span(int shift, int size, bool flip) {
  const int padded = flip ? shift : -shift;
  const int begin = padded < 0 ? 0 : padded > size ? size : padded;
  const int end = size + padded < begin ? begin : size + padded > size ? size : size + padded;
  return flip ? Span{begin, end, shift + size - 1, -1} : Span{begin, end, shift, 1};
}

constexpr int kTile = 1024;  // pixels a block writes: one 32x32 image

struct Geometry {
  int64_t images, image_stride, row_stride;
  int height, width, padding;
  int tiles;  // of an image; the grid is all tiles of all images of the batch
};

// Of images with these sizes and strides.
inline Geometry geometry_of(const int64_t* sizes, const int64_t* strides, int64_t padding) {
  const int height = static_cast<int>(sizes[1]), width = static_cast<int>(sizes[2]);
  const int tiles = (height * width + kTile - 1) / kTile;
  return {sizes[0], strides[0], strides[1], height, width, static_cast<int>(padding), tiles};
}

}  // namespace resnet_min

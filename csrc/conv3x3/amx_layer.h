// What amx.cpp and amx_weight.cpp share.
#pragma once

#include <ATen/core/Tensor.h>

#include "conv3x3/amx_tiles.h"

namespace resnet_min::amx {

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

inline const Bf16* data_of(const at::Tensor& x) { return static_cast<const Bf16*>(x.const_data_ptr()); }
inline Bf16* mutable_data_of(const at::Tensor& x) { return static_cast<Bf16*>(x.mutable_data_ptr()); }

// A 3×3 convolution; or `turned` about, as its input's gradient is one of the output's gradient.
struct Layer {
  int64_t stride;
  bool turned = false;

  // What a tap (of a row or a column of them) takes for the row or column `at`: one of `extent`, or -1.
  int64_t source(int64_t at, int64_t tap, int64_t extent) const {
    const int64_t from = turned ? at + 1 - tap : at * stride + tap - 1;
    if (from < 0 || (turned && from % stride != 0)) return -1;
    const int64_t row = turned ? from / stride : from;
    return row < extent ? row : -1;
  }
};

}  // namespace resnet_min::amx

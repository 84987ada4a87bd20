// A whole net as a list of layers, for inference on the CPU in float32.
//
// The first values are the inputs; each layer makes the next one from earlier ones; the last value is the result. A
// plan has kFields numbers a layer. Convolutions and linear layers take the weights, and their biases, in the order of
// the plan.
#pragma once

#include <ATen/core/grad_mode.h>

#include <array>
#include <optional>
#include <vector>

#include "check.h"

namespace resnet_min {

enum class Kind : int64_t {
  kConvolution,  // relu(conv(x) + bias + residual)
  kMaxPool,      // windows of size × size; what is outside a map does not count
  kMeanPool,     // over a whole map
  kLinear,       // of a map of one pixel
};

enum class Form : int64_t {
  kFaster,     // whichever of the next two is, by this processor and shape
  kDirect,     // the sum as it stands
  kWinograd2,  // F(2×2, 3×3)
  kWinograd4,  // F(4×4, 3×3) where kFaster would be F(2×2, 3×3): less exact
};

struct Layer {
  Kind kind;
  int64_t source, residual;  // values; residual is -1 where nothing is added
  int64_t residual_stride;   // of its pixels; of its channels, missing ones are zeros
  int64_t stride, padding, size;
  bool relu;
  Form form;
};
constexpr int64_t kFields = 9;

inline std::vector<Layer> layers_of(at::IntArrayRef plan) {
  require(!plan.empty() && plan.size() % kFields == 0, "fused_net");
  std::vector<Layer> layers;
  for (const int64_t* field = plan.begin(); field != plan.end(); field += kFields) {
    layers.push_back(
        {Kind{field[0]}, field[1], field[2], field[3], field[4], field[5], field[6], field[7] != 0, Form{field[8]}});
  }
  return layers;
}

// The sizes of a value, of each image.
struct Sizes {
  int64_t channels, height, width;
};

// Whether there are fewer than 2**31 elements; a weight may have dimensions of any size with no memory behind it.
inline bool are_few(at::IntArrayRef sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  int64_t product = 1;
  return std::all_of(sizes.begin(), sizes.end(),
                     [&](int64_t size) { return size < kMost && (product *= size) < kMost; });
}

// The sizes of each value, from inputs [B, C, H, W]; raises ValueError for a plan or weights that do not fit together.
inline std::vector<Sizes> check_fused_net(at::TensorList inputs, at::TensorList weights, at::TensorList biases,
                                          const std::vector<Layer>& layers) {
  const char* op = "fused_net";
  constexpr int64_t kMost = 1 << 15;
  const at::Tensor& x = inputs[0];
  std::vector<Sizes> values;
  for (const at::Tensor& input : inputs) {
    require(fits(input, at::kFloat, {x.size(0), kAnySize, kAnySize, kAnySize}, x) && input.size(1) > 0 &&
                input.size(2) > 0 && input.size(3) > 0 && are_few(input.sizes()),
            op);
    values.push_back({input.size(1), input.size(2), input.size(3)});
  }
  require(weights.size() == biases.size(), op);
  const auto train = [](at::TensorList tensors) {
    return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) { return tensor.requires_grad(); });
  };
  require(!at::GradMode::is_enabled() || !(train(inputs) || train(weights) || train(biases)), op);
  size_t used = 0;
  for (const Layer& layer : layers) {
    const int64_t known = static_cast<int64_t>(values.size());
    require(layer.kind >= Kind::kConvolution && layer.kind <= Kind::kLinear && layer.form >= Form::kFaster &&
                layer.form <= Form::kWinograd4 && (layer.kind == Kind::kConvolution || !layer.relu),
            op);
    require(layer.source >= 0 && layer.source < known && layer.residual >= -1 && layer.residual < known, op);
    require(layer.stride >= 1 && layer.stride <= kMost && layer.padding >= 0 && layer.padding <= kMost &&
                layer.residual_stride >= 1 && layer.residual_stride <= kMost,
            op);
    const Sizes in = values[layer.source];
    Sizes out = in;
    int64_t high = layer.size, wide = layer.size;
    if (layer.kind == Kind::kConvolution || layer.kind == Kind::kLinear) {
      require(used < weights.size(), op);
      const at::Tensor &weight = weights[used], &bias = biases[used];
      ++used;
      const bool linear = layer.kind == Kind::kLinear;
      require(weight.scalar_type() == at::kFloat && weight.device() == x.device() && weight.numel() > 0 &&
                  weight.layout() == at::kStrided && weight.dim() == (linear ? 2 : 4) &&
                  weight.size(1) == in.channels && fits(bias, at::kFloat, {weight.size(0)}, x) &&
                  weight.numel() < std::numeric_limits<int32_t>::max(),
              op);
      require(!linear || (in.height == 1 && in.width == 1 && layer.stride == 1 && layer.padding == 0 &&
                          &layer == &layers.back()),
              op);
      high = linear ? 1 : weight.size(2);
      wide = linear ? 1 : weight.size(3);
      out.channels = weight.size(0);
    } else if (layer.kind == Kind::kMaxPool) {
      // As in torch: every window has a pixel of the map.
      require(layer.size >= 1 && layer.size <= kMost && 2 * layer.padding <= layer.size, op);
    } else {
      require(layer.kind == Kind::kMeanPool, op);
      out.height = out.width = 1;
    }
    if (layer.kind != Kind::kMeanPool) {
      require(in.height + 2 * layer.padding >= high && in.width + 2 * layer.padding >= wide, op);
      out.height = (in.height + 2 * layer.padding - high) / layer.stride + 1;
      out.width = (in.width + 2 * layer.padding - wide) / layer.stride + 1;
    }
    require(are_few({x.size(0), out.channels, out.height, out.width}), op);
    // Its padding is in memory.
    require(are_few({x.size(0), in.channels, in.height + 2 * layer.padding, in.width + 2 * layer.padding}), op);
    if (layer.residual >= 0) {
      const Sizes added = values[layer.residual];
      const int64_t every = layer.residual_stride;
      require(layer.kind == Kind::kConvolution && added.channels <= out.channels &&
                  (added.height + every - 1) / every == out.height && (added.width + every - 1) / every == out.width,
              op);
    }
    values.push_back(out);
  }
  require(used == weights.size(), op);
  return values;
}

// relu(conv(x) + bias + residual) as a plan of one layer, for conv_bn_relu in float32, which has checked its arguments.
at::Tensor fused_layer(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       const std::optional<at::Tensor>& residual, int64_t stride, int64_t padding, bool relu);

}  // namespace resnet_min

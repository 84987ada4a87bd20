// The weights of a layer in the order in which the loops read them, in panels: a panel has the channels of the output
// that a product makes at once.
#pragma once

#include <map>

#include "fused_net/cpu_buffer.h"
#include "fused_net/op.h"

namespace resnet_min {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A convolution's or linear layer's weight [O, C, h, w].
struct Packed {
  int64_t outputs, inputs, height, width;
  int64_t vectors, panel, panels;  // vectors of a panel, its channels; how many there are
  std::vector<float> bias;         // [panels][panel], zeros at the end
  std::map<Form, Buffer> forms;    // direct [panels][h][w][C][panel]; Winograd's [panels][points][C][panel]

  Packed(const at::Tensor& weight, const at::Tensor& bias, int64_t lanes)
      : outputs(weight.size(0)),
        inputs(weight.size(1)),
        height(weight.dim() == 2 ? 1 : weight.size(2)),
        width(weight.dim() == 2 ? 1 : weight.size(3)),
        vectors(outputs > lanes ? 2 : 1),
        panel(vectors * lanes),
        panels(ceil_div(outputs, panel)),
        bias(panels * panel),
        weight_(weight) {
    const at::Tensor whole = bias.contiguous();
    std::copy_n(whole.const_data_ptr<float>(), outputs, this->bias.data());
  }

  // Makes that form, where it is not there yet.
  const float* in(Form form);

  void forget_weight() { weight_.reset(); }
  void remember_weight(const at::Tensor& weight) { weight_ = weight; }

 private:
  at::Tensor weight_;
};

// ---- Winograd's transforms of a filter's row of three: G w ----

// Tiles of m × m pixels have (m + 2)² points: transforms.h says which.
inline int64_t tile_of(Form form) { return form == Form::kWinograd4 ? 4 : form == Form::kWinograd2 ? 2 : 0; }

inline void transform_filter(Form form, const std::array<double, 3>& w, double* to) {
  if (form == Form::kWinograd2) {
    to[0] = w[0];
    to[1] = (w[0] + w[1] + w[2]) / 2;
    to[2] = (w[0] - w[1] + w[2]) / 2;
    to[3] = w[2];
  } else {
    constexpr double a = 0.625, b = 1.5;
    const auto at = [&](double x, double by) { return (w[0] + x * (w[1] + x * w[2])) / by; };
    to[0] = w[0] / (a * a * b * b);
    to[1] = at(a, 2 * a * a * (a * a - b * b));
    to[2] = at(-a, 2 * a * a * (a * a - b * b));
    to[3] = at(b, 2 * b * b * (b * b - a * a));
    to[4] = at(-b, 2 * b * b * (b * b - a * a));
    to[5] = w[2];
  }
}

inline const float* Packed::in(Form form) {
  Buffer& buffer = forms[form];
  if (buffer) return buffer.data();
  // [h, w, C, O], however the weight lies
  const at::Tensor ordered = (weight_.dim() == 2 ? weight_.t() : weight_.permute({2, 3, 1, 0})).contiguous();
  const float* from = ordered.const_data_ptr<float>();
  const int64_t taps = height * width, size = tile_of(form) + 2, points = size * size;
  if (form == Form::kDirect) {
    buffer = Buffer(panels * taps * inputs * panel);
    float* const to = buffer.data();
    for (int64_t row = 0; row < taps * inputs; ++row) {
      for (int64_t o = 0; o < outputs; ++o) {
        to[(o / panel * taps * inputs + row) * panel + o % panel] = from[row * outputs + o];
      }
    }
    return to;
  }
  buffer = Buffer(panels * points * inputs * panel);
  float* const to = buffer.data();
  for (int64_t c = 0; c < inputs; ++c) {
    for (int64_t o = 0; o < outputs; ++o) {
      double half[3][6], whole[6][6];
      for (int i = 0; i < 3; ++i) {
        const auto at = [&](int j) -> double { return from[((i * 3 + j) * inputs + c) * outputs + o]; };
        transform_filter(form, {at(0), at(1), at(2)}, half[i]);
      }
      for (int64_t j = 0; j < size; ++j) {
        double column[6];
        transform_filter(form, {half[0][j], half[1][j], half[2][j]}, column);
        for (int64_t i = 0; i < size; ++i) whole[i][j] = column[i];
      }
      for (int64_t i = 0; i < points; ++i) {
        to[((o / panel * points + i) * inputs + c) * panel + o % panel] = static_cast<float>(whole[i / size][i % size]);
      }
    }
  }
  return to;
}

}  // namespace resnet_min

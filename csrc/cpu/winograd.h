// The 3×3 convolution of float32 channels_last maps at stride 1, padded by 1, in Winograd's form.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace resnet_min {

// Whether the kernels take such channels: they work on kSlab at a time.
bool winograd_takes(int64_t inputs, int64_t outputs);

// weight float32 [O, C, 3, 3] -> [O / 64, 4, 4, C, 64], its transform.
at::Tensor winograd_weight(const at::Tensor& weight);

// relu(conv(x) + bias + residual) from a transformed weight; x and residual channels_last, bias contiguous.
at::Tensor winograd_conv(const at::Tensor& x, const at::Tensor& transformed, const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& residual, bool relu);

}  // namespace resnet_min

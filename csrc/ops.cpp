// The operators' schemas, and the Python module that says how they were built. The folders add kernels.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include <string>

#include "conv3x3/op.h"

#define RESNET_MIN_TEXT_OF(x) #x
#define RESNET_MIN_TEXT(x) RESNET_MIN_TEXT_OF(x)

TORCH_LIBRARY(resnet_min, m) {
  m.def("crop_flip(Tensor images, Tensor index, Tensor offset, Tensor flip, Tensor table, int padding) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_bn_relu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int stride, int padding, bool relu) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_add_relu(Tensor x, Tensor gamma, Tensor beta, Tensor? residual, float eps, bool relu) -> (Tensor out, Tensor "
      "mean, Tensor invstd)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "bn_add_relu_backward(Tensor grad, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor invstd, Tensor? out, "
      "bool relu) -> (Tensor grad_x, Tensor grad_gamma, Tensor grad_beta, Tensor grad_residual)",
      {at::Tag::pt2_compliant_tag});
  // A weight prepacked for conv_bn_relu's CPU kernel and x of these sizes, where that is in Winograd's form.
  m.def("_winograd_weight(Tensor weight, int[] x, int stride, int padding) -> Tensor?");
  m.def("conv3x3(Tensor x, Tensor weight) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "conv3x3_backward(Tensor grad, Tensor x, Tensor weight, bool for_x, bool for_weight) -> (Tensor grad_x, Tensor "
      "grad_weight)",
      {at::Tag::pt2_compliant_tag});
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang++ " RESNET_MIN_TEXT(__clang_major__) "." RESNET_MIN_TEXT(__clang_minor__) "." RESNET_MIN_TEXT(
      __clang_patchlevel__);
#elif defined(__GNUC__)
  return "g++ " RESNET_MIN_TEXT(__GNUC__) "." RESNET_MIN_TEXT(__GNUC_MINOR__) "." RESNET_MIN_TEXT(__GNUC_PATCHLEVEL__);
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
#ifdef WITH_CUDA
  info["cuda"] = RESNET_MIN_CUDA_VERSION;
  info["archs"] = RESNET_MIN_CUDA_ARCHS;
#else
  info["cuda"] = pybind11::none();
  info["archs"] = pybind11::none();
#endif
  info["compiler"] = compiler();
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &build_info, "torch, CUDA (or None), architectures (or None) and compiler it was built with.");
  m.attr("winograd_channels") = resnet_min::kSlab;
}

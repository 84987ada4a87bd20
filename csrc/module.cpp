// The Python module, which says how it was built. The operators are in the folders of their names: schema, kernels.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <string>

#include "conv3x3/amx.h"
#include "conv3x3/op.h"

#define RESNET_MIN_TEXT_OF(x) #x
#define RESNET_MIN_TEXT(x) RESNET_MIN_TEXT_OF(x)

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
  m.attr("conv_channels") = resnet_min::kConvChannels;
  m.def("has_amx", &resnet_min::amx::available, "Whether conv3x3 has a kernel for bfloat16 on this CPU.");
}

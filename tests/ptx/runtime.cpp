// Of CUDA's runtime what nvcc's launches call, and a launch runs in the interpreter. Python has the functions below.
#include <cuda_runtime_api.h>

#include <unordered_map>

#include "instructions.h"

namespace {

using namespace ptx;

constexpr uint32_t kStatic = 48 << 10;  // bytes of shared memory that nobody needs to ask for

struct Runtime {
  std::map<std::string, Kernel> kernels;
  std::unordered_map<const void*, std::string> names;    // of kernels, by the host's function
  std::unordered_map<const void*, size_t> most_dynamic;  // bytes of shared memory that the host asked for
  std::vector<std::tuple<dim3, dim3, size_t, void*>> configurations;
  cudaError_t last_error = cudaSuccess;
  Options options;
  GlobalMemory memory;
  Faults faults;
  uint64_t instructions = 0;
  int multiprocessors = 132;
};

Runtime& runtime() {  // kernels are registered before any constructor here would have run
  static Runtime only;
  return only;
}

void launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared) {
  Runtime& all = runtime();
  const auto found = all.kernels.find(all.names.at(function));
  if (found == all.kernels.end()) throw std::runtime_error("no PTX of " + all.names.at(function));
  Kernel& kernel = found->second;
  const auto asked = all.most_dynamic.find(function);
  const size_t most = asked == all.most_dynamic.end() ? kStatic - kernel.shared_bytes : asked->second;
  if (shared > most) throw std::runtime_error("more shared memory than was asked for");
  if (grid.x == 0 || grid.y * grid.z * block.y * block.z != 1) throw std::runtime_error("a grid not of one dimension");
  if (block.x == 0 || block.x > kernel.most_threads) throw std::runtime_error("a block of too many threads");
  std::vector<char> parameters(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i) {
    std::memcpy(&parameters[kernel.parameters[i].offset], arguments[i], kernel.parameters[i].bytes);
  }
  ++kernel.launches;
  Launch launch{kernel,     grid.x,     block.x,    static_cast<uint32_t>(shared),
                parameters, all.memory, all.faults, all.options};
  run(launch);
  all.instructions += launch.instructions;
}

}  // namespace

extern "C" {

// ---- CUDA's runtime ----

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  runtime().names[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* stream) {
  runtime().configurations.emplace_back(grid, block, shared, stream);
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  std::tie(*grid, *block, *shared, *static_cast<void**>(stream)) = runtime().configurations.back();
  runtime().configurations.pop_back();
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t) {
  try {
    launch(function, grid, block, arguments, shared);
  } catch (const std::exception& error) {
    runtime().faults.add(error.what());
    runtime().last_error = cudaErrorLaunchFailure;
  }
  return runtime().last_error;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  runtime().most_dynamic[function] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(runtime().last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? runtime().multiprocessors : 8;
  return cudaSuccess;
}

// ---- for operators.cpp and Python ----

void ptx_allocated(const void* begin, size_t bytes) { runtime().memory.add(begin, bytes); }
void ptx_freed(const void* begin) { runtime().memory.remove(begin); }

// All kernels of some texts, in place of those before. Returns what is wrong, or null.
const char* ptx_load(const char* const* texts, int count) {
  static std::string wrong;
  runtime().kernels.clear();
  try {
    for (int i = 0; i < count; ++i) Parser::parse(texts[i], runtime().kernels);
  } catch (const std::exception& error) {
    wrong = error.what();
    return wrong.c_str();
  }
  return nullptr;
}

void ptx_set(unsigned order, bool early_copies, int count_of_multiprocessors) {
  runtime().options.order = order;
  runtime().options.early_copies = early_copies;
  runtime().multiprocessors = count_of_multiprocessors;
}

// What was wrong since this was last asked, a line each; how many such things there were comes first.
const char* ptx_faults() {
  static std::string text;
  text = std::to_string(runtime().faults.count);
  for (const std::string& fault : runtime().faults.first) text += "\n" + fault;
  runtime().faults = {};
  runtime().configurations.clear();
  return text.c_str();
}

// Of every kernel a line: launches, instructions, how many of them were executed, its name; then those that were not.
const char* ptx_coverage() {
  static std::string text;
  text.clear();
  for (const auto& [name, kernel] : runtime().kernels) {
    const auto executed = std::count_if(kernel.code.begin(), kernel.code.end(), [](auto& one) { return one.executed; });
    text += std::to_string(kernel.launches) + " " + std::to_string(kernel.code.size()) + " " +
            std::to_string(executed) + " " + name + "\n";
    for (const Instruction& one : kernel.code) {
      if (one.executed) continue;
      text += "\t" + one.text + "\n";
      std::replace(text.end() - one.text.size() - 1, text.end() - 1, '\n', ' ');  // cuobjdump's may have several lines
    }
  }
  return text.c_str();
}

uint64_t ptx_instructions() { return runtime().instructions; }

}  // extern "C"

// A whole net in one call: prepacked weights, maps that stay where they are from call to call, nothing but our own
// loops between the images and the logits. A small batch goes through a layer on all threads at once; of a large one,
// each thread takes some images through all layers, so that their maps stay in its cache.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <deque>
#include <list>
#include <memory>
#include <mutex>

#include "fused_net/cpu_run.h"

namespace resnet_min {
namespace {

// What one run needs of memory; it belongs to no other meanwhile. Maps are zeros, of which steps leave the margins.
struct Workspace {
  Buffer batch;
  std::vector<Buffer> own, scratch;  // of each thread
  std::deque<Counts> counts;         // of items: of each step, with one before them for the images

  explicit Workspace(const Program& program) : batch(program.batch_size) {
    int64_t most = 0;
    for (const Step& step : program.steps) most = std::max(most, scratch_floats(step));
    for (int64_t thread = 0; thread < program.threads; ++thread) {
      own.emplace_back(program.thread_size);
      scratch.emplace_back(most);
    }
    for (size_t i = 0; i <= program.steps.size(); ++i) counts.emplace_back(program.threads);
  }
};

// A program, and the workspaces that no call is using.
class Prepared {
 public:
  explicit Prepared(Program program) : program(std::move(program)) {}

  std::unique_ptr<Workspace> take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        auto workspace = std::move(free_.back());
        free_.pop_back();
        return workspace;
      }
    }
    return std::make_unique<Workspace>(program);
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(workspace));
  }

  const Program program;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

// ---- which form a convolution takes ----

bool winograd_fits(const Layer& layer, const Packed& packed, int64_t added) {
  const int64_t lanes = loops().lanes;
  return layer.kind == Kind::kConvolution && packed.height == 3 && packed.width == 3 && layer.stride == 1 &&
         layer.padding == 1 && packed.inputs % lanes == 0 && packed.outputs % lanes == 0 && added % lanes == 0;
}

// Where a residual of `added` channels is added.
Form form_of(const Layer& layer, const Packed& packed, const Sizes& out, int64_t added, int64_t images) {
  if (layer.form == Form::kDirect || !winograd_fits(layer, packed, added)) return Form::kDirect;
  if (layer.form == Form::kWinograd2) return Form::kWinograd2;
  const int64_t tiles = images * ceil_div(out.height, 2) * ceil_div(out.width, 2);
  if (tiles < 8) return Form::kDirect;
  const bool large = packed.inputs >= 64 && packed.outputs >= 64 && out.height >= 8 && out.width >= 8;
  return layer.form == Form::kWinograd4 && large ? Form::kWinograd4 : Form::kWinograd2;
}

// ---- a net ----

// Weights in their packed forms, and programs for the sizes of images seen last.
class Net {
 public:
  Net(at::IntArrayRef plan, at::TensorList weights, at::TensorList biases)
      : plan_(plan.vec()), layers_(layers_of(plan)) {
    for (size_t i = 0; i < weights.size(); ++i) packed_.emplace_back(weights[i], biases[i], loops().lanes);
    for (const at::Tensor& tensor : weights) seen_.emplace_back(tensor);
    for (const at::Tensor& tensor : biases) seen_.emplace_back(tensor);
  }

  // Whether these are the tensors, none written to since.
  bool is_of(at::IntArrayRef plan, at::TensorList weights, at::TensorList biases) const {
    if (plan != at::IntArrayRef(plan_) || weights.size() + biases.size() != seen_.size()) return false;
    for (size_t i = 0; i < seen_.size(); ++i) {
      if (!seen_[i].is(i < weights.size() ? weights[i] : biases[i - weights.size()])) return false;
    }
    return true;
  }
  // Whether a tensor is gone, or was written to: no call will ask for this net again.
  bool is_stale() const {
    return std::any_of(seen_.begin(), seen_.end(), [](const Seen& seen) {
      const auto tensor = at::Tensor(seen.tensor.lock());
      return !tensor.defined() || !seen.is(tensor);
    });
  }

  std::shared_ptr<Prepared> prepare(const std::vector<Sizes>& sizes, at::TensorList weights, int64_t images,
                                    int64_t threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::array<int64_t, 5> key{sizes[0].channels, sizes[0].height, sizes[0].width, images, threads};
    for (auto it = prepared_.begin(); it != prepared_.end(); ++it) {
      if (it->first != key) continue;
      prepared_.splice(prepared_.begin(), prepared_, it);
      return it->second;
    }
    for (size_t i = 0; i < weights.size(); ++i) packed_[i].remember_weight(weights[i]);
    Program program(layers_, sizes, packed_, images, threads,
                    [&](const Layer& layer, const Packed& packed, const Sizes& out, int64_t added) {
                      return form_of(layer, packed, out, added, images);
                    });
    for (Packed& packed : packed_) packed.forget_weight();
    prepared_.emplace_front(key, std::make_shared<Prepared>(std::move(program)));
    int64_t floats = 0, shapes = 0;
    prepared_.remove_if([&](const auto& seen) {
      floats += seen.second->program.floats();
      return ++shapes > kShapes || (shapes > 1 && floats > kFloats);
    });
    return prepared_.front().second;
  }

 private:
  // Sizes that are remembered, and the memory for their maps: 256 MiB, or that of the last one.
  static constexpr int64_t kShapes = 8, kFloats = 1 << 26;

  struct Seen {
    c10::weak_intrusive_ptr<c10::TensorImpl> tensor;  // while they are held, no others get their addresses
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    const void *address, *storage_address, *data;
    std::vector<int64_t> sizes, strides;  // `.data = ` may change them
    int64_t version;

    explicit Seen(const at::Tensor& of)
        : tensor(of.getIntrusivePtr()),
          storage(of.storage().getWeakStorageImpl()),
          address(of.unsafeGetTensorImpl()),
          storage_address(of.storage().unsafeGetStorageImpl()),
          data(of.const_data_ptr()),
          sizes(of.sizes().vec()),
          strides(of.strides().vec()),
          version(version_of(of)) {}
    bool is(const at::Tensor& other) const {
      return other.unsafeGetTensorImpl() == address && other.storage().unsafeGetStorageImpl() == storage_address &&
             other.const_data_ptr() == data && other.sizes() == at::IntArrayRef(sizes) &&
             other.strides() == at::IntArrayRef(strides) && version_of(other) == version;
    }
    static int64_t version_of(const at::Tensor& of) { return of.is_inference() ? 0 : of._version(); }
  };

  const std::vector<int64_t> plan_;
  const std::vector<Layer> layers_;
  std::vector<Packed> packed_;
  std::vector<Seen> seen_;
  std::mutex mutex_;
  std::list<std::pair<std::array<int64_t, 5>, std::shared_ptr<Prepared>>> prepared_;
};

// The net of these tensors, packed once; those of tensors that are gone or were written to are dropped.
std::shared_ptr<Net> net_of(at::IntArrayRef plan, at::TensorList weights, at::TensorList biases) {
  static std::mutex mutex;
  static std::list<std::shared_ptr<Net>> nets;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& net : nets) {
    if (net->is_of(plan, weights, biases)) return net;
  }
  nets.remove_if([](const auto& net) { return net->is_stale(); });
  nets.push_back(std::make_shared<Net>(plan, weights, biases));
  return nets.back();
}

// ---- running ----

// `images` images through the program, on all threads.
void run(const Program& program, const Images& from, float* result, int64_t images, Workspace& workspace) {
  for (Counts& counts : workspace.counts) counts.reset();
  std::atomic<int64_t> thread{0};
  const auto work = [&] {
    const int64_t me = thread.fetch_add(1);
    const Worker worker(program, from, workspace.batch.data(), result, workspace.own[me].data(),
                        workspace.scratch[me].data());
    for (const Segment& segment : program.segments) {
      const int64_t rows = segment.begin == 0 ? program.input.height : 0;
      if (segment.images == 0) {
        const auto share_step = [&](size_t index, int64_t items, const auto& item) {
          workspace.counts[index].share(me, items, item);
        };
        share_step(0, rows * images, [&](int64_t item) { worker.read(0, item); });
        for (size_t s = segment.begin; s < segment.end; ++s) {
          const Cut parts = cut(program.steps[s], images, program.threads);
          share_step(s + 1, parts.items(), [&](int64_t item) { worker.work(program.steps[s], parts, 0, item); });
        }
        continue;
      }
      workspace.counts[segment.begin + 1].share(me, ceil_div(images, segment.images), [&](int64_t group) {
        const int64_t first = group * segment.images, count = std::min(segment.images, images - first);
        for (int64_t item = 0; item < rows * count; ++item) worker.read(first, item);
        for (size_t s = segment.begin; s < segment.end; ++s) {
          const Cut parts = cut(program.steps[s], count, 1);
          for (int64_t item = 0; item < parts.items(); ++item) worker.work(program.steps[s], parts, first, item);
        }
      });
    }
  };
  at::parallel_for(0, program.threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) work();
  });
}

constexpr int64_t kImages = 16;  // of a thread, in a run

at::Tensor run_plan(at::TensorList inputs, at::TensorList weights, at::TensorList biases, at::IntArrayRef plan) {
  const std::vector<Layer> layers = layers_of(plan);
  const std::vector<Sizes> sizes = check_fused_net(inputs, weights, biases, layers);
  const at::Tensor& x = inputs[0];
  const at::Tensor second = inputs.size() > 1 ? inputs[1].contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();
  const Sizes& out = sizes.back();
  at::Tensor result = layers.back().kind == Kind::kLinear ? at::empty({x.size(0), out.channels}, x.options())
                                                          : at::empty({x.size(0), out.channels, out.height, out.width},
                                                                      x.options(), at::MemoryFormat::ChannelsLast);
  if (result.numel() == 0) return result;
  const int64_t batch = x.size(0), threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  // Sizes of batches in powers of two: a server whose batches differ has few programs, not one for each.
  int64_t images = 1;
  while (images < batch) images *= 2;
  images = std::min(kImages * threads, images);
  const int64_t each = result.numel() / batch;
  const std::shared_ptr<Net> net = net_of(plan, weights, biases);  // another thread may drop it from the list
  const auto prepared = net->prepare(sizes, weights, images, threads);
  auto workspace = prepared->take();
  for (int64_t first = 0; first < batch; first += images) {
    const Images from{x.const_data_ptr<float>() + first * x.stride(0),
                      x.stride(0),
                      x.stride(1),
                      x.stride(2),
                      x.stride(3),
                      second.defined() ? second.const_data_ptr<float>() + first * second.numel() / batch : nullptr};
    run(prepared->program, from, result.mutable_data_ptr<float>() + first * each, std::min(images, batch - first),
        *workspace);
  }
  prepared->give_back(std::move(workspace));
  return result;
}

// ---- what there is to reach ----

at::Tensor fused_net(const at::Tensor& x, at::TensorList weights, at::TensorList biases, at::IntArrayRef plan) {
  return run_plan(x, weights, biases, plan);
}

// On each of torch's threads `rounds` multiply-adds in each of kChains vectors, for benchmarks to time; returns how
// many that is, of numbers, on all threads.
int64_t multiply_adds(int64_t rounds) {
  const int64_t threads = at::get_num_threads();
  std::atomic<float> kept{0};  // or the compiler leaves it all out
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) kept = loops().multiply_adds(rounds, 0.5f);
  });
  return rounds * threads * kChains * loops().lanes;
}

}  // namespace

at::Tensor fused_layer(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       const std::optional<at::Tensor>& residual, int64_t stride, int64_t padding, bool relu) {
  const std::array<int64_t, kFields> plan{0, 0, residual ? 1 : -1, 1, stride, padding, 0, relu, 0};
  return residual ? run_plan({x, *residual}, weight, bias, plan) : run_plan(x, weight, bias, plan);
}

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def("fused_net(Tensor x, Tensor[] weights, Tensor[] biases, int[] plan) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_multiply_adds(int rounds) -> int", &multiply_adds);
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) { m.impl("fused_net", &fused_net); }

}  // namespace resnet_min

// Crop, flip and normalise a batch of images. Two steps an image: crop and flip its bytes into a buffer that stays in
// cache (a pixel of padding is three zeros), then look each byte up in its channel's table.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>
#include <vector>

#include "crop_flip/cpu_loops.h"
#include "crop_flip/op.h"

namespace resnet_min {
namespace {

constexpr int64_t kGrain = 32768;  // output values that are worth another thread

// The two steps on any processor. T has the size of the table's dtype: entries are moved, never computed with.
template <typename T>
struct Portable {
  const T* table;

  // Writes rows [rows.begin, rows.end) of the crop.
  static void crop_rows(const uint8_t* image, int64_t row_stride, Span rows, Span columns, int width, uint8_t* out) {
    for (int y = rows.begin; y < rows.end; ++y) {
      crop_row(image + (rows.first + y) * row_stride, columns, width, out + int64_t{3} * y * width);
    }
  }

  static void crop_row(const uint8_t* row, Span columns, int width, uint8_t* out) {
    const int begin = 3 * columns.begin, end = 3 * columns.end;
    std::memset(out, 0, begin);
    if (columns.stride == 1) {
      std::memcpy(out + begin, row + 3 * columns.first + begin, end - begin);
    } else {
      for (int x = columns.begin; x < columns.end; ++x) std::memcpy(out + 3 * x, row + 3 * (columns.first - x), 3);
    }
    std::memset(out + end, 0, 3 * width - end);
  }

  // `soon`: an image that is wanted next.
  void look_up(const uint8_t* bytes, int pixels, T* out, const uint8_t* /*soon*/) const {
    for (int i = 0; i < pixels; ++i, bytes += 3, out += 3) {
      out[0] = table[bytes[0]];
      out[1] = table[256 + bytes[1]];
      out[2] = table[512 + bytes[2]];
    }
  }
};

#ifdef RESNET_MIN_VBMI
template <typename T>
struct Vbmi {
  Portable<T> rest;
  vbmi::Planes<T> planes;

  explicit Vbmi(const T* table) : rest{table}, planes(table) {}

  static void crop_rows(const uint8_t* image, int64_t row_stride, Span rows, Span columns, int width, uint8_t* out) {
    vbmi::crop_rows(image, row_stride, rows, columns, width, out);
  }

  void look_up(const uint8_t* bytes, int pixels, T* out, const uint8_t* soon) const {
    const int done = vbmi::look_up(bytes, pixels, planes, out, soon);
    rest.look_up(bytes + 3 * done, pixels - done, out + 3 * done, soon);
  }
};
#endif

struct Batch {
  const uint8_t* images;
  int64_t image_stride, row_stride;
  int height, width, padding;
  const int64_t *index, *offset;
  const bool* flip;
  int64_t size;
};

template <typename Steps, typename T>
void run(const Batch& batch, const Steps& steps, T* out) {
  const int64_t row_bytes = 3 * batch.width, image_bytes = batch.height * row_bytes;
  const int64_t grain = std::max<int64_t>(1, kGrain / image_bytes);
  at::parallel_for(0, batch.size, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> cropped(image_bytes);
    for (int64_t b = begin; b < end; ++b) {
      const int top = static_cast<int>(batch.offset[2 * b]), left = static_cast<int>(batch.offset[2 * b + 1]);
      const Span rows = source_span(top - batch.padding, batch.height, false);
      const Span columns = source_span(left - batch.padding, batch.width, batch.flip[b]);
      const uint8_t* image = batch.images + batch.index[b] * batch.image_stride;
      const uint8_t* soon = batch.images + batch.index[std::min(b + 2, end - 1)] * batch.image_stride;
      std::memset(cropped.data(), 0, rows.begin * row_bytes);
      Steps::crop_rows(image, batch.row_stride, rows, columns, batch.width, cropped.data());
      std::memset(cropped.data() + rows.end * row_bytes, 0, (batch.height - rows.end) * row_bytes);
      steps.look_up(cropped.data(), batch.height * batch.width, out + b * image_bytes, soon);
    }
  });
}

template <typename T>
void run(const Batch& batch, const at::Tensor& table, const at::Tensor& out) {
  const T* entries = static_cast<const T*>(table.const_data_ptr());
  T* output = static_cast<T*>(out.mutable_data_ptr());
#ifdef RESNET_MIN_VBMI
  if constexpr (sizeof(T) <= 4) {
    if (vbmi::available()) return run(batch, Vbmi<T>(entries), output);
  }
#endif
  run(batch, Portable<T>{entries}, output);
}

void check_ranges(const Batch& batch, int64_t images) {
  for (int64_t b = 0; b < batch.size; ++b) {
    TORCH_CHECK_INDEX(0 <= batch.index[b] && batch.index[b] < images, "crop_flip: index must be in [0, ", images,
                      "); got ", batch.index[b], " at ", b);
    for (int64_t i = 2 * b; i < 2 * b + 2; ++i) {
      TORCH_CHECK_INDEX(0 <= batch.offset[i] && batch.offset[i] <= 2 * batch.padding,
                        "crop_flip: offset must be in [0, ", 2 * batch.padding, "]; got ", batch.offset[i], " at ", b);
    }
  }
}

at::Tensor crop_flip(const at::Tensor& images, const at::Tensor& index, const at::Tensor& offset,
                     const at::Tensor& flip, const at::Tensor& table, int64_t padding) {
  check_crop_flip(images, index, offset, flip, table, padding);
  const at::Tensor index_c = index.contiguous(), offset_c = offset.contiguous(), flip_c = flip.contiguous();
  const Batch batch{images.const_data_ptr<uint8_t>(),
                    images.stride(0),
                    images.stride(1),
                    static_cast<int>(images.size(1)),
                    static_cast<int>(images.size(2)),
                    static_cast<int>(padding),
                    index_c.const_data_ptr<int64_t>(),
                    offset_c.const_data_ptr<int64_t>(),
                    flip_c.const_data_ptr<bool>(),
                    index.size(0)};
  check_ranges(batch, images.size(0));
  at::Tensor out = at::empty({batch.size, batch.height, batch.width, 3}, table.options());
  if (out.numel() > 0) {
    const auto run_as = table.element_size() == 2   ? run<uint16_t>
                        : table.element_size() == 4 ? run<uint32_t>
                                                    : run<uint64_t>;
    run_as(batch, table.contiguous(), out);
  }
  return out.permute({0, 3, 1, 2});  // channels_last
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(resnet_min, m) {
  m.def("crop_flip(Tensor images, Tensor index, Tensor offset, Tensor flip, Tensor table, int padding) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(resnet_min, CPU, m) { m.impl("crop_flip", &crop_flip); }

}  // namespace resnet_min

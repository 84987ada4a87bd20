// Crop, flip and normalise a batch of images. Two steps an image: copy its bytes into a buffer that stays in cache,
// with a border of zeros (the padding), then look each byte of the crop up in its channel's table.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "crop_flip/cpu_vbmi.h"
#include "crop_flip/op.h"
#include "vector.h"

namespace resnet_min {
namespace {

constexpr int64_t kGrain = 32768;  // output values that are worth another thread

struct Batch {
  const uint8_t* images;
  int64_t image_stride, row_stride;
  int height, width, padding;
  const int64_t *index, *offset;
  const bool* flip;
  int64_t size;

  const uint8_t* image(int64_t b) const { return images + index[b] * image_stride; }
  // How far the crop is off the image, down and right.
  int down(int64_t b) const { return static_cast<int>(offset[2 * b]) - padding; }
  int right(int64_t b) const { return static_cast<int>(offset[2 * b + 1]) - padding; }
};

#define RESNET_MIN_LOOPS "crop_flip/cpu_loops.h"
#include "vector.h"

#ifdef RESNET_MIN_VBMI
template <typename T>
void crop_images_vbmi(const Batch& batch, int64_t begin, int64_t end, const T* table, const vbmi::Planes<T>& planes,
                      T* out) {
  const int64_t row_bytes = 3 * batch.width, image_bytes = batch.height * row_bytes;
  const int pixels = batch.height * batch.width;
  std::vector<uint8_t> cropped(image_bytes);
  for (int64_t b = begin; b < end; ++b) {
    const Span rows = source_span(batch.down(b), batch.height, false);
    const Span columns = source_span(batch.right(b), batch.width, batch.flip[b]);
    std::memset(cropped.data(), 0, rows.begin * row_bytes);
    vbmi::crop_rows(batch.image(b), batch.row_stride, rows, columns, batch.width, cropped.data());
    std::memset(cropped.data() + rows.end * row_bytes, 0, (batch.height - rows.end) * row_bytes);
    T* to = out + b * image_bytes;
    const int done = vbmi::look_up(cropped.data(), pixels, planes, to, batch.image(std::min(b + 2, end - 1)));
    portable::look_up_row<false>(cropped.data() + 3 * done, pixels - done, table, to + 3 * done);
  }
}
#endif

template <typename T>
void run(const Batch& batch, const at::Tensor& table, const at::Tensor& out) {
  const T* entries = static_cast<const T*>(table.const_data_ptr());
  T* output = static_cast<T*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / (int64_t{3} * batch.height * batch.width));
#ifdef RESNET_MIN_VBMI
  if constexpr (sizeof(T) <= 4) {
    if (vbmi::available()) {
      const vbmi::Planes<T> planes(entries);
      return at::parallel_for(0, batch.size, grain, [&](int64_t begin, int64_t end) {
        crop_images_vbmi(batch, begin, end, entries, planes, output);
      });
    }
  }
#endif
  const auto crop = RESNET_MIN_CHOSEN(crop_images<T>);
  at::parallel_for(0, batch.size, grain, [&](int64_t begin, int64_t end) { crop(batch, begin, end, entries, output); });
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

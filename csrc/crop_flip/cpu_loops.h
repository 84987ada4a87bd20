// The loops of cpu.cpp (see vector.h).

// Eight bytes, the first one lowest.
RESNET_MIN_TARGET inline uint64_t word(const uint8_t* bytes) {
  uint64_t value;
  __builtin_memcpy(&value, bytes, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  value = __builtin_bswap64(value);
#endif
  return value;
}

// Looks `pixels` of a row up, the last one first if `flip`. What bounds this is the processor's loads and stores: bytes
// come by the word and entries go by the vector, all shifts and lanes being constants of the unrolled loops.
template <bool flip, typename T>
RESNET_MIN_TARGET inline void look_up_row(const uint8_t* bytes, int pixels, const T* table, T* out) {
  constexpr int kGroup = 8, lanes = 16 / sizeof(T);  // a group is three words; wider vectors are slower to put together
  int done = 0;
  for (; done + kGroup <= pixels; done += kGroup, out += 3 * kGroup) {
    const uint8_t* group = bytes + 3 * (flip ? pixels - kGroup - done : done);
    const uint64_t words[3] = {word(group), word(group + 8), word(group + 16)};
#pragma GCC unroll 12
    for (int first = 0; first < 3 * kGroup; first += lanes) {
      Vector<T, lanes> entries;
#pragma GCC unroll 8
      for (int lane = 0; lane < lanes; ++lane) {
        const int entry = first + lane, channel = entry % 3;
        const int from = flip ? 3 * (kGroup - 1 - entry / 3) + channel : entry;
        entries[lane] = table[256 * channel + (words[from / 8] >> from % 8 * 8 & 255)];
      }
      __builtin_memcpy(out + first, &entries, sizeof entries);
    }
  }
  for (; done < pixels; ++done, out += 3) {
    const uint8_t* pixel = bytes + 3 * (flip ? pixels - 1 - done : done);
    for (int channel = 0; channel < 3; ++channel) out[channel] = table[256 * channel + pixel[channel]];
  }
}

// Rows are short: a call of memcpy for each costs as much as the copy.
RESNET_MIN_TARGET inline void copy(const uint8_t* from, int64_t bytes, uint8_t* to) {
  for (; bytes >= kBytes; bytes -= kBytes, from += kBytes, to += kBytes) __builtin_memcpy(to, from, kBytes);
  for (; bytes > 0; --bytes) *to++ = *from++;
}

// Makes crops [begin, end) of the batch. T has the size of the table's dtype: entries are moved, never computed with.
template <typename T>
RESNET_MIN_TARGET void crop_images(const Batch& batch, int64_t begin, int64_t end, const T* table, T* out) {
  const int height = batch.height, width = batch.width;
  const int above = std::min(batch.padding, height), beside = std::min(batch.padding, width);
  const int64_t row_bytes = 3 * width, stride = row_bytes + 6 * beside;
  std::vector<uint8_t> bordered((height + 2 * above) * stride);  // the border stays zero
  uint8_t* const inside = bordered.data() + above * stride + 3 * beside;
  out += begin * height * row_bytes;
  for (int64_t b = begin; b < end; ++b) {
    const int down = std::clamp(batch.down(b), -above, above), right = std::clamp(batch.right(b), -beside, beside);
    const uint8_t *image = batch.image(b), *soon = batch.image(std::min(b + 2, end - 1));
    for (int y = std::max(0, down); y < std::min(height, height + down); ++y) {
      copy(image + y * batch.row_stride, row_bytes, inside + y * stride);
    }
    const uint8_t* crop = inside + down * stride + 3 * right;
    for (int y = 0; y < height; ++y, crop += stride, soon += batch.row_stride, out += row_bytes) {
      // A row of the image after next: a few lines at a time hide among the look-ups, all at once hide half as well.
      for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(soon + byte, 0, 2);
      batch.flip[b] ? look_up_row<true>(crop, width, table, out) : look_up_row<false>(crop, width, table, out);
    }
  }
}

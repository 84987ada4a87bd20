// The two steps of cpu.cpp on x86-64 with AVX-512 VBMI, whose byte permutes look 64 bytes up at once.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RESNET_MIN_VBMI __attribute__((target("avx512f,avx512bw,avx512vbmi")))

#include <ATen/Version.h>
#include <immintrin.h>

#include "crop_flip/op.h"

namespace resnet_min::vbmi {

// Asks torch as well, so that ATEN_CPU_CAPABILITY=default turns this off like torch's own vector code.
inline bool available() {
  static const bool found = at::get_cpu_capability() == "AVX512" && __builtin_cpu_supports("avx512vbmi");
  return found;
}

// _mm512_permutexvar_epi8, which g++ 12 warns about by mistake.
RESNET_MIN_VBMI inline __m512i permute(__m512i order, __m512i bytes) {
  return _mm512_maskz_permutexvar_epi8(~__mmask64{0}, order, bytes);
}

// ---- crop and flip ----

constexpr int kGroup = 21;  // whole pixels in 64 bytes

struct Order {
  alignas(64) uint8_t from[64];
};

constexpr Order pixel_order(bool reversed) {
  Order order{};
  for (int i = 0; i < 3 * kGroup; ++i) {
    order.from[i] = static_cast<uint8_t>(reversed ? 3 * (kGroup - 1 - i / 3) + i % 3 : i);
  }
  return order;
}

constexpr __mmask64 pixels_below(int pixels) { return (__mmask64{1} << 3 * pixels) - 1; }

// Writes rows [rows.begin, rows.end) of the crop, one group of columns after the other. Only bytes of the image are
// read and only bytes of the crop written: a masked access touches nothing else.
RESNET_MIN_VBMI inline void crop_rows(const uint8_t* image, int64_t row_stride, Span rows, Span columns, int width,
                                      uint8_t* out) {
  static constexpr Order kOrders[2] = {pixel_order(false), pixel_order(true)};
  const bool flip = columns.stride < 0;
  const __m512i order = _mm512_load_si512(kOrders[flip].from);
  for (int x = 0; x < width; x += kGroup) {
    const int begin = std::clamp(columns.begin - x, 0, kGroup), end = std::clamp(columns.end - x, 0, kGroup);
    const __mmask64 read =
        flip ? pixels_below(kGroup - begin) & ~pixels_below(kGroup - end) : pixels_below(end) & ~pixels_below(begin);
    const __mmask64 write = pixels_below(std::min(kGroup, width - x));
    const int64_t left = flip ? columns.first - x - (kGroup - 1) : columns.first + x;
    for (int y = rows.begin; y < rows.end; ++y) {
      const __m512i pixels = _mm512_maskz_loadu_epi8(read, image + (rows.first + y) * row_stride + 3 * left);
      _mm512_mask_storeu_epi8(out + 3 * (int64_t{y} * width + x), write, permute(order, pixels));
    }
  }
}

// ---- look up ----

// The tables, byte by byte: byte s of channel c's entry v is at [c][s][v].
template <typename T>
struct Planes {
  alignas(64) uint8_t byte[3][sizeof(T)][256];

  explicit Planes(const T* table) {
    for (int c = 0; c < 3; ++c) {
      for (size_t s = 0; s < sizeof(T); ++s) {
        for (int v = 0; v < 256; ++v) byte[c][s][v] = static_cast<uint8_t>(table[256 * c + v] >> (8 * s));
      }
    }
  }
};

RESNET_MIN_VBMI inline __m512i look_up_bytes(const uint8_t* table, __m512i index) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), index, _mm512_load_si512(table + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

// Takes a where bits of neither mask are set.
RESNET_MIN_VBMI inline __m512i select(__mmask64 take_b, __mmask64 take_c, __m512i a, __m512i b, __m512i c) {
  return _mm512_mask_blend_epi8(take_c, _mm512_mask_blend_epi8(take_b, a, b), c);
}

// Writes 64 entries, given byte s of each in plane[s]. Unpacking works within lanes of 16 bytes: see entry_order.
RESNET_MIN_VBMI inline void store_entries(const __m512i (&plane)[2], uint16_t* out) {
  _mm512_storeu_si512(out, _mm512_unpacklo_epi8(plane[0], plane[1]));
  _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi8(plane[0], plane[1]));
}

RESNET_MIN_VBMI inline void store_entries(const __m512i (&plane)[4], uint32_t* out) {
  const __m512i low0 = _mm512_unpacklo_epi8(plane[0], plane[1]), high0 = _mm512_unpacklo_epi8(plane[2], plane[3]);
  const __m512i low1 = _mm512_unpackhi_epi8(plane[0], plane[1]), high1 = _mm512_unpackhi_epi8(plane[2], plane[3]);
  _mm512_storeu_si512(out, _mm512_unpacklo_epi16(low0, high0));
  _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi16(low0, high0));
  _mm512_storeu_si512(out + 32, _mm512_unpacklo_epi16(low1, high1));
  _mm512_storeu_si512(out + 48, _mm512_unpackhi_epi16(low1, high1));
}

// The order of 64 bytes that store_entries puts straight: a lane holds a 16-byte piece of each of its stores.
constexpr Order entry_order(int entry_size) {
  Order order{};
  const int piece = 16 / entry_size, store = 64 / entry_size;
  for (int i = 0; i < 64; ++i) {
    order.from[i] = static_cast<uint8_t>(i % 16 / piece * store + i / 16 * piece + i % piece);
  }
  return order;
}

// Where a vector in this order holds bytes 0, 3, 6 ... plus `channel`.
constexpr __mmask64 channel_mask(const Order& order, int channel) {
  __mmask64 mask = 0;
  for (int i = 0; i < 64; ++i) mask |= static_cast<__mmask64>(order.from[i] % 3 == channel) << i;
  return mask;
}

// Looks up whole groups of 64 pixels, and returns how many pixels those were.
//
// Three vectors hold 64 pixels, and at any one position they hold three different channels. So blends collect a
// channel's 64 values, and blends put them back after the lookup: nothing moves across.
//
// Meanwhile it brings as many bytes at `soon` into the second-level cache: images come from all over a data set much
// larger than the caches. A few lines at a time hide among the lookups; all at once were no faster than none.
template <typename T>
RESNET_MIN_VBMI int look_up(const uint8_t* bytes, int pixels, const Planes<T>& planes, T* out, const uint8_t* soon) {
  constexpr int kSize = sizeof(T);
  static constexpr Order kOrder = entry_order(kSize);
  constexpr __mmask64 kSecond = channel_mask(kOrder, 1), kThird = channel_mask(kOrder, 2);
  const __m512i order = _mm512_load_si512(kOrder.from);
  int done = 0;
  for (; done + 64 <= pixels; done += 64, bytes += 192, soon += 192, out += 192) {
    for (int v = 0; v < 3; ++v) _mm_prefetch(reinterpret_cast<const char*>(soon + 64 * v), _MM_HINT_T1);
    __m512i in[3], result[3][kSize];
    for (int v = 0; v < 3; ++v) in[v] = permute(order, _mm512_loadu_si512(bytes + 64 * v));
    for (int c = 0; c < 3; ++c) {
      const __m512i values = select(kSecond, kThird, in[c], in[(c + 2) % 3], in[(c + 1) % 3]);
      for (int s = 0; s < kSize; ++s) result[c][s] = look_up_bytes(planes.byte[c][s], values);
    }
    for (int v = 0; v < 3; ++v) {
      __m512i plane[kSize];
      for (int s = 0; s < kSize; ++s) {
        plane[s] = select(kSecond, kThird, result[v][s], result[(v + 1) % 3][s], result[(v + 2) % 3][s]);
      }
      store_entries(plane, out + 64 * v);
    }
  }
  return done;
}

}  // namespace resnet_min::vbmi
#endif

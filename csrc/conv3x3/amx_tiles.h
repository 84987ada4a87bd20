// The loops of amx.cpp: products of tiles, and what brings maps and weights into the order that tiles are read in.
//
// A tile is 16 rows of 64 bytes. tdpbf16ps adds to 16×16 sums of float32 the product of A, 16 rows of 32 bfloat16, and
// B, which has them in pairs: 16 rows of 16 columns, each of two successive terms.
#pragma once

#include <immintrin.h>

#include <array>
#include <cstdint>

#include "vector.h"

#define RESNET_MIN_AMX \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")))

namespace resnet_min::amx {

using Bf16 = uint16_t;

constexpr int64_t kImages = 32;       // of a block; pixel by pixel they are two tiles' rows, or one tile's terms
constexpr int64_t kTile = 512;        // bfloat16 in a tile
constexpr int64_t kHalf = kTile / 2;  // those of B for 16 terms
constexpr int64_t kSums = 256;        // float32 in a tile

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// GCC does not know that what loads a tile, or the tiles' shapes, reads memory: what was written is to be there.
inline void all_written(const void* where = nullptr) { asm volatile("" ::"r"(where) : "memory"); }

// The tiles of a thread: 0 to 3 are sums, 4 and 5 an A, 6 and 7 a B.
class Tiles {
 public:
  RESNET_MIN_AMX Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.bytes[tile] = 64;
      config.rows[tile] = 16;
    }
    all_written(&config);
    _tile_loadconfig(&config);
  }
  RESNET_MIN_AMX ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// ---- vectors ----

using Pixels = Vector<Bf16, 16>;     // 16 channels of a pixel, for instance
using Pairs = Vector<uint32_t, 16>;  // a row of a tile: 16 pairs

template <typename V>
RESNET_MIN_AMX inline V load(const Bf16* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename V>
RESNET_MIN_AMX inline void store(V v, Bf16* to) {
  __builtin_memcpy(to, &v, sizeof v);
}

// ---- products ----

RESNET_MIN_AMX inline void zero_sums() {
  all_written();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Adds the products of two A, their rows `bytes` apart, and the two B at `b`: to tiles 0 and 1 the first A's.
RESNET_MIN_AMX inline void add_four(const Bf16* first, const Bf16* second, int64_t bytes, const Bf16* b) {
  _tile_loadd(4, first, bytes);
  _tile_loadd(6, b, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + kTile, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, second, bytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// What a pixel of 32 images is the sum over: A and B for each tap that is inside.
struct Terms {
  const Bf16 *a[9], *b[9];
  int count = 0;
};

// One pixel of 32 images, 32 outputs (or the first 16, if not `all`), of `channels` channels, a multiple of 32:
// rounded, to `to`, the images `to_image` apart.
RESNET_MIN_AMX inline void pixel_sums(const Terms& terms, int64_t channels, Bf16* to, int64_t to_image, bool all) {
  zero_sums();
  for (int term = 0; term < terms.count; ++term) {
    const Bf16 *a = terms.a[term], *b = terms.b[term];
    for (int64_t c = 0; c < channels; c += 32, a += 32, b += 2 * kTile) {
      add_four(a, a + 16 * channels, 2 * channels, b);
    }
  }
  alignas(64) float sums[2][2][16][16];
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  _tile_stored(2, sums[1][0], 64);
  _tile_stored(3, sums[1][1], 64);
  for (int64_t i = 0; i < kImages; ++i) {
    const auto& [left, right] = sums[i / 16];
    const __m512 first = _mm512_load_ps(left[i % 16]);
    if (all) {
      store(_mm512_cvtne2ps_pbh(_mm512_load_ps(right[i % 16]), first), to + i * to_image);
    } else {
      store(_mm512_cvtneps_pbh(first), to + i * to_image);
    }
  }
}

// Where the sums of tiles 0 to 3 are kept; the fourth tile may have none.
using Sums = std::array<float*, 4>;

RESNET_MIN_AMX inline void load_sums(const Sums& from) {
  all_written();
  _tile_loadd(0, from[0], 64);
  _tile_loadd(1, from[1], 64);
  _tile_loadd(2, from[2], 64);
  if (from[3] != nullptr) _tile_loadd(3, from[3], 64);
}

RESNET_MIN_AMX inline void store_sums(const Sums& to) {
  _tile_stored(0, to[0], 64);
  _tile_stored(1, to[1], 64);
  _tile_stored(2, to[2], 64);
  if (to[3] != nullptr) _tile_stored(3, to[3], 64);
}

// Adds the products of `pixels` pixels' gradients, at `a`, and inputs, at `b`, to sums of 32 outputs and 32 inputs.
RESNET_MIN_AMX inline void add_products(const Bf16* a, int64_t a_pixel, const Bf16* b, int64_t b_pixel,
                                        int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i, a += a_pixel, b += b_pixel) {
    add_four(a, a + kTile, 64, b);
  }
}

// The same of 16 outputs and 16 inputs, for three taps: their inputs lie `b_tap` apart.
RESNET_MIN_AMX inline void add_narrow_products(const Bf16* a, int64_t a_pixel, const Bf16* b, int64_t b_pixel,
                                               int64_t b_tap, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i, a += a_pixel, b += b_pixel) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_tap, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, b + 2 * b_tap, 64);
    _tile_dpbf16ps(2, 4, 6);
  }
}

// ---- packing ----

// a0 b0 a1 b1 …
RESNET_MIN_AMX inline Pairs in_pairs(Pixels a, Pixels b) {
  return (Pairs)__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10,
                                        26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Turns 16 rows of 16: four times, rows i and i + 8 become rows 2i and 2i + 1, their values by turns.
RESNET_MIN_AMX inline void transpose(Pairs (&rows)[16]) {
  for (int round = 0; round < 4; ++round) {
    Pairs mixed[16];
    for (int i = 0; i < 8; ++i) {
      const Pairs a = rows[i], b = rows[i + 8];
      mixed[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      mixed[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < 16; ++i) rows[i] = mixed[i];
  }
}

// Half a B of weights: 16 terms and 16 columns. `from` is the first; terms or columns lie `stride` apart, the others
// beside each other.
RESNET_MIN_AMX inline void pack_weights(const Bf16* from, int64_t stride, bool terms_apart, Bf16* to) {
  Pairs rows[16] = {};
  if (terms_apart) {
    for (int i = 0; i < 8; ++i) {
      rows[i] = in_pairs(load<Pixels>(from + 2 * i * stride), load<Pixels>(from + (2 * i + 1) * stride));
    }
  } else {
    for (int i = 0; i < 16; ++i) __builtin_memcpy(&rows[i], from + i * stride, 16 * sizeof(Bf16));
    transpose(rows);
  }
  for (int i = 0; i < 8; ++i) store(rows[i], to + 32 * i);
}

// A row of `images` maps, which lie `image` apart: `width` pixels of `channels` channels from `from` on, written pixel
// by pixel, `to_pixel` apart, image by image. The channels of the last 32 that are not there are zero.
RESNET_MIN_AMX inline void pack_row(const Bf16* from, int64_t image, int64_t images, int64_t width, int64_t channels,
                                    Bf16* to, int64_t to_pixel) {
  const int64_t whole = channels / 32 * 32, to_image = ceil_div(channels, 32) * 32;
  for (int64_t i = 0; i < images; ++i) {
    const Bf16* pixel = from + i * image;
    for (int64_t x = 0; x < width; ++x, pixel += channels) {
      Bf16* const at = to + x * to_pixel + i * to_image;
      for (int64_t c = 0; c < whole; c += 32) store(load<Pairs>(pixel + c), at + c);
      if (whole < channels) {
        store(load<Pixels>(pixel + whole), at + whole);
        store(Pixels{}, at + whole + 16);
      }
    }
  }
}

// 16 channels of a pixel of `images` images, at most 32, as a tile: in pairs of images, a row a pair, as B; or turned,
// a row a channel, as A. Images that are not there are zeros.
template <bool turned>
RESNET_MIN_AMX inline void pack_images(const Bf16* from, int64_t image, int64_t images, Bf16* to) {
  Pairs rows[16];
  for (int64_t i = 0; i < 16; ++i) {
    rows[i] = in_pairs(2 * i < images ? load<Pixels>(from + 2 * i * image) : Pixels{},
                       2 * i + 1 < images ? load<Pixels>(from + (2 * i + 1) * image) : Pixels{});
  }
  if (turned) transpose(rows);
  for (int i = 0; i < 16; ++i) store(rows[i], to + 32 * i);
}

// 16 sums as bfloat16.
RESNET_MIN_AMX inline void round16(const float* from, Bf16* to) {
  store(_mm512_cvtneps_pbh(_mm512_loadu_ps(from)), to);
}

}  // namespace resnet_min::amx

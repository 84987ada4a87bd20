// What a register holds, and a function of such values in each lane of a warp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "warp.h"

namespace ptx {

// A register has 64 bits, of which an instruction takes as many as its type has.

struct Half {
  _Float16 value;
};

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
T as(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

inline float to_float(float value) { return value; }
inline float to_float(Half value) { return static_cast<float>(value.value); }
inline float to_float(BFloat16 value) { return as<float>(uint64_t{value.bits} << 16); }

inline Half to_half(float value) { return std::isnan(value) ? as<Half>(0x7fff) : Half{static_cast<_Float16>(value)}; }

inline BFloat16 to_bfloat16(float value) {  // to the nearest, ties to even
  const uint64_t bits = bits_of(value);
  return {static_cast<uint16_t>(std::isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <typename F>
void for_each_lane(const Warp& warp, const F& f) {
  for (uint32_t rest = warp.active; rest; rest &= rest - 1) f(std::countr_zero(rest));
}

// to = f(from …) in each lane.
template <auto f, typename... From>
void map(Warp& warp, const Instruction& instruction) {
  const auto apply = [&]<size_t... i>(std::index_sequence<i...>) {
    for_each_lane(warp, [&](int lane) {
      warp.registers[instruction.to[0]][lane] = bits_of(f(as<From>(warp.value(instruction.from[i], lane))...));
    });
  };
  apply(std::index_sequence_for<From...>());
}

}  // namespace ptx

// What each opcode does. Most are one line of a table: a function of values, applied to each active lane.
#pragma once

#include <cmath>
#include <type_traits>
#include <unordered_map>

#include "tensor_core.h"
#include "values.h"
#include "warp.h"

namespace ptx {

// ---- moves ----

// {to …} = from, to = {from …}, to = from: the parts are adjacent, the first one lowest.
template <int bits>
void move(Warp& warp, const Instruction& instruction) {
  const int parts = static_cast<int>(std::max(instruction.to.size(), instruction.from.size())), each = bits / parts;
  const uint64_t mask = each == 64 ? ~uint64_t{0} : (uint64_t{1} << each) - 1;
  for_each_lane(warp, [&](int lane) {
    uint64_t whole = 0;
    for (size_t i = 0; i < instruction.from.size(); ++i) {
      const uint64_t value = warp.value(instruction.from[i], lane);
      whole |= instruction.from.size() == 1 ? value : (value & mask) << each * i;
    }
    for (size_t i = 0; i < instruction.to.size(); ++i) {
      warp.registers[instruction.to[i]][lane] = instruction.to.size() == 1 ? whole : whole >> each * i & mask;
    }
  });
}

enum class Space { kParameter, kShared, kGlobal, kConstant };

template <Space space>
const char* reading(Warp& warp, uint64_t address, uint32_t bytes, int lane, const char*& data) {
  Launch& launch = warp.block.launch;
  if constexpr (space == Space::kParameter) {
    const uint64_t offset = address - kParameters;
    if (offset + bytes > launch.parameters.size() || offset % bytes) return "not a parameter";
    data = launch.parameters.data() + offset;
    return nullptr;
  } else if constexpr (space == Space::kShared) {
    const char* fault = warp.block.shared.read(static_cast<uint32_t>(address), bytes, warp.thread(lane));
    if (!fault) data = warp.block.shared.data(static_cast<uint32_t>(address));
    return fault;
  } else {
    data = reinterpret_cast<const char*>(address);
    return launch.global.read(address, bytes, warp.thread_of_grid(lane), space == Space::kConstant);
  }
}

template <Space space, typename T>
void load(Warp& warp, const Instruction& instruction) {
  const auto bytes = static_cast<uint32_t>(sizeof(T) * instruction.to.size());
  for_each_lane(warp, [&](int lane) {
    const char* data = nullptr;
    const uint64_t address = warp.address(instruction.from[0], lane);
    if (!warp.check(reading<space>(warp, address, bytes, lane, data), lane, instruction)) return;
    for (size_t i = 0; i < instruction.to.size(); ++i) {
      T value;
      std::memcpy(&value, data + i * sizeof(T), sizeof(T));
      if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {  // the register may be wider
        warp.registers[instruction.to[i]][lane] = static_cast<uint64_t>(static_cast<int64_t>(value));
      } else {
        warp.registers[instruction.to[i]][lane] = bits_of(value);
      }
    }
  });
}

template <Space space, typename T>
void store(Warp& warp, const Instruction& instruction) {
  const size_t count = instruction.from.size() - 1;
  const auto bytes = static_cast<uint32_t>(sizeof(T) * count);
  for_each_lane(warp, [&](int lane) {
    const uint64_t address = warp.address(instruction.from[0], lane);
    const char* fault = nullptr;
    char* data = nullptr;
    if constexpr (space == Space::kShared) {
      fault = warp.block.shared.write(static_cast<uint32_t>(address), bytes, warp.thread(lane));
      if (!fault) data = warp.block.shared.data(static_cast<uint32_t>(address));
    } else {
      fault = warp.block.launch.global.write(address, bytes, warp.thread_of_grid(lane));
      data = reinterpret_cast<char*>(address);
    }
    if (!warp.check(fault, lane, instruction)) return;
    for (size_t i = 0; i < count; ++i) {
      const T value = as<T>(warp.value(instruction.from[1 + i], lane));
      std::memcpy(data + i * sizeof(T), &value, sizeof(T));
    }
  });
}

inline void assertion(Warp& warp, const Instruction&) {
  throw std::runtime_error(warp.block.launch.kernel.name + ": an assertion failed");
}

// ---- the table ----

using Table = std::unordered_map<std::string, Opcode>;

template <typename T, bool unordered = false>
void add_comparisons(Table& table, const std::string& type) {
  const std::string end = (unordered ? "u." : ".") + type;
  table["setp.eq" + end] = {map<[](T a, T b) { return unordered ? !(a < b || (a > b)) : a == b; }, T, T>};
  table["setp.ne" + end] = {map<[](T a, T b) { return unordered ? a != b : (a < b || (a > b)); }, T, T>};
  table["setp.lt" + end] = {map<[](T a, T b) { return unordered ? !(a >= b) : a < b; }, T, T>};
  table["setp.le" + end] = {map<[](T a, T b) { return unordered ? !(a > b) : a <= b; }, T, T>};
  table["setp.gt" + end] = {map<[](T a, T b) { return unordered ? !(a <= b) : (a > b); }, T, T>};
  table["setp.ge" + end] = {map<[](T a, T b) { return unordered ? !(a < b) : (a >= b); }, T, T>};
}

template <typename T>
T divided(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(-static_cast<uint64_t>(a));
  }
  return static_cast<T>(a / b);
}

// T: the type; Twice: the one that is twice as wide. Sums wrap around.
template <typename T, typename Twice>
void add_integers(Table& table, const std::string& type) {
  using W = uint64_t;
  table["add." + type] = {map<[](T a, T b) { return T(W(a) + W(b)); }, T, T>};
  table["sub." + type] = {map<[](T a, T b) { return T(W(a) - W(b)); }, T, T>};
  table["mul.lo." + type] = {map<[](T a, T b) { return T(W(a) * W(b)); }, T, T>};
  table["mul.wide." + type] = {map<[](T a, T b) { return Twice(Twice(a) * Twice(b)); }, T, T>};
  table["mul.hi." + type] = {map<[](T a, T b) { return T(Twice(a) * Twice(b) >> 8 * sizeof(T)); }, T, T>};
  table["mad.lo." + type] = {map<[](T a, T b, T c) { return T(W(a) * W(b) + W(c)); }, T, T, T>};
  table["div." + type] = {map<divided<T>, T, T>};
  table["rem." + type] = {map<[](T a, T b) { return T(W(a) - W(divided(a, b)) * W(b)); }, T, T>};
  table["min." + type] = {map<[](T a, T b) { return std::min(a, b); }, T, T>};
  table["max." + type] = {map<[](T a, T b) { return std::max(a, b); }, T, T>};
  table["neg." + type] = {map<[](T a) { return T(-W(a)); }, T>};
  table["shr." + type] = {
      map<[](T a, uint32_t n) { return T(n < 8 * sizeof(T) ? a >> n
                                         : a < 0           ? -1
                                                           : 0); }, T, uint32_t>};
  add_comparisons<T>(table, type);
}

template <typename T>
void add_floats(Table& table, const std::string& type) {
  table["add." + type] = {map<[](T a, T b) { return a + b; }, T, T>};
  table["sub." + type] = {map<[](T a, T b) { return a - b; }, T, T>};
  table["mul." + type] = {map<[](T a, T b) { return a * b; }, T, T>};
  table["fma.rn." + type] = {map<[](T a, T b, T c) { return std::fma(a, b, c); }, T, T, T>};
  table["div.rn." + type] = {map<[](T a, T b) { return a / b; }, T, T>};
  table["rcp.rn." + type] = {map<[](T a) { return 1 / a; }, T>};
  table["sqrt.rn." + type] = {map<[](T a) { return std::sqrt(a); }, T>};
  table["neg." + type] = {map<[](T a) { return -a; }, T>};
  table["abs." + type] = {map<[](T a) { return std::fabs(a); }, T>};
  table["min." + type] = {map<[](T a, T b) { return std::fmin(a, b); }, T, T>};
  table["max." + type] = {map<[](T a, T b) { return std::fmax(a, b); }, T, T>};
  table["cvt.rn." + type + ".s32"] = {map<[](int32_t a) { return static_cast<T>(a); }, int32_t>};
  table["cvt.rn." + type + ".s64"] = {map<[](int64_t a) { return static_cast<T>(a); }, int64_t>};
  add_comparisons<T>(table, type);
  add_comparisons<T, true>(table, type);
}

// T: the unsigned type of that many bits.
template <typename T>
void add_bits(Table& table, const std::string& bits) {
  table["and.b" + bits] = {map<[](T a, T b) { return T(a & b); }, T, T>};
  table["or.b" + bits] = {map<[](T a, T b) { return T(a | b); }, T, T>};
  table["xor.b" + bits] = {map<[](T a, T b) { return T(a ^ b); }, T, T>};
  table["not.b" + bits] = {map<[](T a) { return T(~a); }, T>};
  table["shl.b" + bits] = {map<[](T a, uint32_t n) { return T(n < 8 * sizeof(T) ? a << n : 0); }, T, uint32_t>};
  add_comparisons<T>(table, "b" + bits);
  for (const char* kind : {"b", "u", "s", "f"}) {
    table["mov." + (kind + bits)] = {move<8 * sizeof(T)>};
    table["selp." + (kind + bits)] = {map<[](T a, T b, bool which) { return which ? a : b; }, T, T, bool>};
  }
}

template <typename T>
void add_memory(Table& table, const std::string& type) {
  table["ld.param." + type] = {load<Space::kParameter, T>};
  table["ld.shared." + type] = {load<Space::kShared, T>};
  table["ld.global." + type] = {load<Space::kGlobal, T>};
  table["ld.global.nc." + type] = {load<Space::kConstant, T>};
  table["st.shared." + type] = {store<Space::kShared, T>, Flow::kNext, false};
  table["st.global." + type] = {store<Space::kGlobal, T>, Flow::kNext, false};
  table["st.param." + type] = {nullptr, Flow::kNext, false};  // of a call, which is an assertion's
}

template <typename To, typename From>
void add_conversion(Table& table, const std::string& to, const std::string& from) {
  table["cvt." + to + "." + from] = {map<[](From a) { return static_cast<To>(a); }, From>};
}

template <typename From>
void add_conversions(Table& table, const std::string& from) {
  add_conversion<int16_t, From>(table, "s16", from);
  add_conversion<uint16_t, From>(table, "u16", from);
  add_conversion<int32_t, From>(table, "s32", from);
  add_conversion<uint32_t, From>(table, "u32", from);
  add_conversion<int64_t, From>(table, "s64", from);
  add_conversion<uint64_t, From>(table, "u64", from);
}

// Byte n of the result is the one of {b, a} that digit n of `select` names; with its top bit, only that byte's sign.
inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int n = 0; n < 4; ++n) {
    const uint32_t digit = select >> 4 * n & 15, byte = both >> 8 * (digit & 7) & 0xff;
    result |= (digit & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << 8 * n;
  }
  return result;
}

inline Table make_table() {
  Table table;
  add_integers<int16_t, int32_t>(table, "s16");
  add_integers<uint16_t, uint32_t>(table, "u16");
  add_integers<int32_t, int64_t>(table, "s32");
  add_integers<uint32_t, uint64_t>(table, "u32");
  add_integers<int64_t, __int128>(table, "s64");
  add_integers<uint64_t, unsigned __int128>(table, "u64");
  add_floats<float>(table, "f32");
  add_floats<double>(table, "f64");
  add_bits<uint16_t>(table, "16");
  add_bits<uint32_t>(table, "32");
  add_bits<uint64_t>(table, "64");
  add_memory<int8_t>(table, "s8");
  add_memory<int16_t>(table, "s16");
  add_memory<int32_t>(table, "s32");
  for (const char* kind : {"u", "b", "f"}) {
    const std::string type = kind;
    add_memory<uint8_t>(table, type + "8");
    add_memory<uint16_t>(table, type + "16");
    add_memory<uint32_t>(table, type + "32");
    add_memory<uint64_t>(table, type + "64");
  }
  add_conversions<int8_t>(table, "s8");
  add_conversions<uint8_t>(table, "u8");
  add_conversions<int16_t>(table, "s16");
  add_conversions<uint16_t>(table, "u16");
  add_conversions<int32_t>(table, "s32");
  add_conversions<uint32_t>(table, "u32");
  add_conversions<int64_t>(table, "s64");
  add_conversions<uint64_t>(table, "u64");
  table["cvt.f32.f16"] = {map<[](Half a) { return to_float(a); }, Half>};
  table["cvt.f32.bf16"] = {map<[](BFloat16 a) { return to_float(a); }, BFloat16>};
  table["cvt.rn.f16.f32"] = {map<to_half, float>};
  table["cvt.rn.bf16.f32"] = {map<to_bfloat16, float>};
  table["and.pred"] = {map<[](bool a, bool b) { return a && b; }, bool, bool>};
  table["or.pred"] = {map<[](bool a, bool b) { return a || b; }, bool, bool>};
  table["xor.pred"] = {map<[](bool a, bool b) { return a != b; }, bool, bool>};
  table["not.pred"] = {map<[](bool a) { return !a; }, bool>};
  table["mov.pred"] = {map<[](bool a) { return a; }, bool>};
  table["prmt.b32"] = {map<permuted, uint32_t, uint32_t, uint32_t>};
  table["cvta.global.u64"] = table["cvta.to.global.u64"] = table["cvta.shared.u64"] =
      table["cvta.to.shared.u64"] = {move<64>};
  table["bra"] = {nullptr, Flow::kBranch, false};
  table["bar.sync"] = {nullptr, Flow::kBarrier, false};
  table["ret"] = table["exit"] = {nullptr, Flow::kExit, false};
  table["call"] = table["trap"] = {assertion, Flow::kNext, false};
  add_tensor_core(table);
  return table;
}

// Hints, and what the operands say themselves, are no part of a name: .uni, .v2, .v4, .L2::128B.
inline Opcode opcode_named(const std::string& name) {
  static const Table table = make_table();
  std::string plain;
  std::istringstream parts(name);
  for (std::string part; std::getline(parts, part, '.');) {
    const bool left_out = part == "uni" || part == "v2" || part == "v4" || part == "L2::128B";
    if (!left_out) plain += (plain.empty() ? "" : ".") + part;
  }
  const auto found = table.find(plain);
  if (found == table.end()) throw std::runtime_error("no such opcode: " + name);
  return found->second;
}

}  // namespace ptx

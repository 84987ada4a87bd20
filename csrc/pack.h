// Adjacent values that a thread loads and stores at once: 16 bytes, or fewer.
#pragma once

#include <c10/macros/Macros.h>

namespace resnet_min {

template <typename T, int size>
struct alignas(sizeof(T) * size < 16 ? sizeof(T) * size : 16) Pack {
  T at[size];
};

template <int size, typename T>
C10_HOST_DEVICE inline Pack<T, size> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, size>*>(from);
}

template <typename T, int size>
C10_HOST_DEVICE inline void store_pack(const Pack<T, size>& pack, T* to) {
  *reinterpret_cast<Pack<T, size>*>(to) = pack;
}

}  // namespace resnet_min

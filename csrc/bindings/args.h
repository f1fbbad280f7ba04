// From Python integers to pointers. Addresses and sizes cross the border, never tensors.
#pragma once

#include <cstdint>

#include "common/api.h"
#include "common/check.h"

namespace tfq::bindings {

// Address of a tensor's first element (0 = None).
using Address = uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline void check_sizes(const char* operation, std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes)
    TFQ_CHECK(size >= 0, operation, ": sizes must not be negative, got ", size);
}

inline void check_not_null(const char* operation, std::initializer_list<Address> addresses) {
  for (const Address address : addresses)
    TFQ_CHECK(address != 0, operation, ": a required tensor has no memory");
}

// There must be products to sum, and sums of k of at most 255 * 127 must fit int32; `name` is the user's
// word for k.
inline void check_depth(const char* operation, int64_t k, const char* name = "k") {
  constexpr int64_t kMaxDepth = (int64_t{1} << 31) / (255 * 127) - 1;
  TFQ_CHECK(k > 0, operation, ": ", name, " must be positive, got ", k);
  TFQ_CHECK(k <= kMaxDepth, operation, ": ", name, " must be at most ", kMaxDepth, ", got ", k);
}

}  // namespace tfq::bindings

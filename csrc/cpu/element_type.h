// Calls a kernel body for the element type of its input. Internal linkage: see api.h.
#pragma once

#include <cstdint>

#include "common/api.h"

namespace tfq::cpu {
namespace {

// f(const float*) or, for bfloat16, f(const uint16_t*).
template <typename F>
inline void with_elements(const void* x, DType dtype, const F& f) {
  if (dtype == DType::kFloat32) {
    f(static_cast<const float*>(x));
  } else {
    f(static_cast<const uint16_t*>(x));
  }
}

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kUInt8 ? 1 : 2;
}

inline const void* element_at(const void* x, DType dtype, int64_t index) {
  return static_cast<const char*>(x) + index * element_bytes(dtype);
}

}  // namespace
}  // namespace tfq::cpu

// Prefetches of pieces of memory that no hardware foresees. Internal linkage: see api.h.
#pragma once

#include <cstdint>

namespace tfq::cpu {
namespace {

constexpr int64_t kLine = 64;

// Brings the lines that [at, at + bytes) touches to the cache: to be written or not, and to the
// first level (3) or to L2 (2).
template <int kWrite, int kLocality>
inline void prefetch_lines(const void* at, int64_t bytes) {
  const int64_t before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % kLine);
  const char* first = static_cast<const char*>(at) - before;
  for (int64_t i = 0; i < before + bytes; i += kLine)
    __builtin_prefetch(first + i, kWrite, kLocality);
}

}  // namespace
}  // namespace tfq::cpu

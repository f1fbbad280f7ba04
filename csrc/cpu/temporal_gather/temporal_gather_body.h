// Dequantisation of one feature over a vector type V (cpu/vector_avx512.h): four instructions for
// 16 values, of which the store of 64 bytes is the limit.
#pragma once

#include "cpu/temporal_gather/temporal_gather.h"

namespace tfq::cpu {
namespace {

template <typename V>
struct TemporalGatherBody {
  static void dequantize(const uint8_t* q, int64_t n, float s, float z, float* out) {
    constexpr int64_t W = V::kWidth;
    const typename V::Float s_v = V::set(s), z_v = V::set(z);
    int64_t i = 0;
    for (; i + W <= n; i += W) V::store(out + i, V::mul(V::sub(V::load(q + i), z_v), s_v));
    if (i < n)
      V::store_first(out + i, V::mul(V::sub(V::load_first(q + i, n - i), z_v), s_v), n - i);
  }

  static constexpr temporal_gather_kernel kKernel = {dequantize};
};

}  // namespace
}  // namespace tfq::cpu

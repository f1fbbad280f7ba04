// Quantise and range kernels over a vector type V (cpu/vector_avx512.h). Both read each value once
// and do less than ten instructions for 16 of them: memory is the limit, four vectors a step hide
// the latency.
#pragma once

#include "cpu/element_type.h"
#include "cpu/quantize/quantize.h"

namespace tfq::cpu {
namespace {

template <typename V, typename T>
void quantize_elements(const T* x, int64_t n, float r, float z, uint8_t* out) {
  constexpr int64_t W = V::kWidth;
  const typename V::Float r_v = V::set(r), z_v = V::set(z);
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    const typename V::Float values[4] = {V::load(x + i), V::load(x + i + W), V::load(x + i + 2 * W),
                                         V::load(x + i + 3 * W)};
    V::quantize(values, r_v, z_v, out + i);
  }
  for (; i < n; i += W) V::quantize_first(V::load_first(x + i, n - i), r_v, z_v, out + i, n - i);
}

// Minimum and maximum do not depend on the order, and 0 is in the range, so that the zeros of a
// partial load and the sign of a zero do not matter.
template <typename V, typename T>
void range_of_elements(const T* x, int64_t n, float* range) {
  constexpr int64_t W = V::kWidth;
  typename V::Float low[4], high[4];
  for (int v = 0; v < 4; ++v) low[v] = high[v] = V::set(0.0f);
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    for (int v = 0; v < 4; ++v) {
      const typename V::Float values = V::load(x + i + v * W);
      low[v] = V::min(values, low[v]);
      high[v] = V::max(values, high[v]);
    }
  }
  for (; i < n; i += W) {
    const typename V::Float values = V::load_first(x + i, n - i);
    low[0] = V::min(values, low[0]);
    high[0] = V::max(values, high[0]);
  }
  const float lowest = V::min_lane(V::min(V::min(low[0], low[1]), V::min(low[2], low[3])));
  const float highest = V::max_lane(V::max(V::max(high[0], high[1]), V::max(high[2], high[3])));
  range[0] = lowest < range[0] ? lowest : range[0];
  range[1] = highest > range[1] ? highest : range[1];
}

template <typename V>
struct QuantizeBody {
  static void quantize(const void* x, DType dtype, int64_t n, float r, float z, uint8_t* out) {
    with_elements(x, dtype,
                  [&](const auto* elements) { quantize_elements<V>(elements, n, r, z, out); });
  }
  static void range(const void* x, DType dtype, int64_t n, float* range) {
    with_elements(x, dtype,
                  [&](const auto* elements) { range_of_elements<V>(elements, n, range); });
  }
  static constexpr quantize_kernel kKernel = {quantize, range};
};

}  // namespace
}  // namespace tfq::cpu

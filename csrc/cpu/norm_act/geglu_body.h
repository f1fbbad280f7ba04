// GEGLU of one row over a vector type V (cpu/vector_avx512.h): some 33 instructions for 16
// values, limited by the ports that execute them.
#pragma once

#include "cpu/element_type.h"
#include "cpu/norm_act/activation.h"
#include "cpu/norm_act/norm_act.h"

namespace tfq::cpu {
namespace {

template <typename V>
struct GegluBody {
  template <typename T>
  static void activate_elements(const T* value, const T* gate, int64_t channels, float* out) {
    constexpr int64_t W = V::kWidth;
    constexpr int N = V::kUnroll;
    int64_t c = 0;
    for (; c + N * W <= channels; c += N * W) {
      typename V::Float g[N];
      for (int v = 0; v < N; ++v) g[v] = V::load(gate + c + v * W);
      gelu<V>(g);
      for (int v = 0; v < N; ++v)
        V::store(out + c + v * W, V::mul(V::load(value + c + v * W), g[v]));
    }
    for (; c < channels; c += W) {
      typename V::Float g[1] = {V::load_first(gate + c, channels - c)};
      gelu<V>(g);
      V::store_first(out + c, V::mul(V::load_first(value + c, channels - c), g[0]), channels - c);
    }
  }

  static void activate(const void* x, DType dtype, int64_t channels, float* out) {
    with_elements(x, dtype, [&](const auto* elements) {
      activate_elements(elements, elements + channels, channels, out);
    });
  }

  static constexpr geglu_kernel kKernel = {activate};
};

}  // namespace
}  // namespace tfq::cpu

// The float parts of attention over a vector type V (cpu/vector_avx512.h): some 22 instructions for
// 8 or 16 logits, beside which a head of 40 channels has 80 multiply-adds for each logit.
#pragma once

#include "cpu/attention_s8/attention_s8.h"
#include "cpu/element_type.h"
#include "cpu/norm_act/activation.h"

namespace tfq::cpu {
namespace {

template <typename V>
struct AttentionS8Body {
  static constexpr int64_t W = V::kWidth;
  static constexpr int kVectors = kMaxLanes / W;  // of 16 columns
  using Float = typename V::Float;

  static void magnitudes(const void* x, DType dtype, int64_t n, float* smallest) {
    with_elements(x, dtype, [&](const auto* elements) {
      for (int64_t c = 0; c < n; c += W) {
        const Float values = V::minus_abs(V::load_first(elements + c, n - c));
        const Float before = V::load_first(smallest + c, n - c);
        V::store_first(smallest + c, V::min(values, before), n - c);
      }
    });
  }

  static void quantize_channels(const void* x, DType dtype, int64_t n, const float* r,
                                uint8_t* out) {
    with_elements(x, dtype, [&](const auto* elements) {
      for (int64_t c = 0; c < n; c += W)
        V::quantize_first(V::load_first(elements + c, n - c), V::load_first(r + c, n - c),
                          V::set(128.0f), out + c, n - c);
    });
  }

  static void logits(int32_t* acc, int64_t columns, float z, const KeyColumns& key,
                     float* largest) {
    const Float minus_z = V::set(-z);
    auto* u = reinterpret_cast<float*>(acc);
    Float most[kVectors];
    for (int v = 0; v < kVectors; ++v) most[v] = V::load(largest + v * W);
    for (int64_t j = 0; j < columns; j += kMaxLanes) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = j + v * W;
        const Float centred = V::fma(minus_z, V::load(key.sum + i), V::load(acc + i));
        const Float logit = V::fma(centred, V::load(key.scale + i), V::load(key.offset + i));
        V::store(u + i, logit);
        most[v] = V::max(logit, most[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) V::store(largest + v * W, most[v]);
  }

  static int64_t softmax(const float* u, int64_t columns, float largest, float c, uint8_t* p) {
    const Float largest_v = V::set(largest), c_v = V::set(c);
    for (int64_t j = 0; j < columns; j += kMaxLanes) {
      Float t[kVectors], e[kVectors];
      for (int v = 0; v < kVectors; ++v)
        t[v] = V::mul(V::sub(V::load(u + j + v * W), largest_v), c_v);
      exp_negative<V>(t, e);
      for (int v = 0; v < kVectors; ++v) e[v] = V::mul(e[v], V::set(255.0f));
      V::store_rounded(e, p + j);
    }
    return V::sum(p, columns);
  }

  template <typename T>
  static void store_channels(const int32_t* acc, int64_t n, const float* scale, float sum, T* out) {
    for (int64_t c = 0; c < n; c += W) {
      const Float factor = V::div(V::load(scale + c), V::set(sum));
      V::store_first(out + c, V::mul(V::load(acc + c), factor), n - c);
    }
  }

  static void store(const int32_t* acc, int64_t n, const float* scale, float sum, DType dtype,
                    void* out) {
    if (dtype == DType::kFloat32) {
      store_channels(acc, n, scale, sum, static_cast<float*>(out));
    } else {
      store_channels(acc, n, scale, sum, static_cast<uint16_t*>(out));
    }
  }

  static constexpr attention_s8_kernel kKernel = {magnitudes, quantize_channels, logits, softmax,
                                                  store};
};

}  // namespace
}  // namespace tfq::cpu

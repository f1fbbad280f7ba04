// The float parts of attention over a vector type V (cpu/vector_avx512.h): some 20 instructions for
// 8 or 16 logits, beside which a head of 40 channels has 80 multiply-adds for each logit. They are
// on the ports of the products, so that they add to their time.
#pragma once

#include "common/softmax.h"
#include "cpu/attention_s8/attention_s8.h"
#include "cpu/element_type.h"
#include "cpu/norm_act/activation.h"

namespace tfq::cpu {
namespace {

// result <- 255 * 2^t for t <= 0, what rounds to 0 at t < -126. To the base 2 the reduction of the
// argument is exact.
template <typename V, int N>
inline void exp2_times_255(const typename V::Float (&t)[N], typename V::Float (&result)[N]) {
  typename V::Float power[N], remainder[N];
  for (int i = 0; i < N; ++i) power[i] = V::nearest_power(t[i], remainder[i]);
  polynomial<V>(kExp2Coefficients, remainder, result);
  for (int i = 0; i < N; ++i) result[i] = V::times_power_of_two(result[i], power[i]);
}

template <typename V>
struct AttentionS8Body {
  static constexpr int64_t W = V::kWidth;
  static constexpr int kVectors = kMaxLanes / W;  // of 16 columns
  // Columns at a time where there are as many: kUnroll vectors, at least those of 16 columns.
  static constexpr int64_t kStep = V::kUnroll * W < kMaxLanes ? kMaxLanes : V::kUnroll * W;
  // Vectors of columns of the key that stay in three registers each, of the 16 or 32 of a level.
  static constexpr int kKeyVectors = W < kMaxLanes ? kVectors : V::kUnroll;
  using Float = typename V::Float;
  using ByteSums = typename V::ByteSums;

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

  // Columns [first, first + N * W) of all rows, whose share of the key stays in registers; without
  // the pragmas GCC keeps it in memory.
  template <int N>
  static void logit_columns(const LogitBlock& block, int64_t first) {
    Float sum[N], scale[N], offset[N];
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) {
      sum[v] = V::load(block.key.sum + first + v * W);
      scale[v] = V::load(block.key.scale + first + v * W);
      offset[v] = V::load(block.key.offset + first + v * W);
    }
    for (int64_t row = 0; row < block.rows; ++row) {
      int32_t* acc = block.acc + row * block.stride + first;
      float* largest = block.largest + row * kMaxLanes;
      const Float minus_z = V::set(-block.zero_point[row]);
      Float most[kVectors];
      for (int v = 0; v < kVectors; ++v) most[v] = V::load(largest + v * W);
#pragma GCC unroll 16
      for (int v = 0; v < N; ++v) {
        const Float centred = V::fma(minus_z, sum[v], V::load(acc + v * W));
        const Float logit = V::fma(centred, scale[v], offset[v]);
        V::store(reinterpret_cast<float*>(acc) + v * W, logit);
        most[v % kVectors] = V::max(logit, most[v % kVectors]);
      }
      for (int v = 0; v < kVectors; ++v) V::store(largest + v * W, most[v]);
    }
  }

  static void logits(const LogitBlock& block) {
    constexpr int64_t kKeyStep = kKeyVectors * W;
    int64_t j = 0;
    for (; j + kKeyStep <= block.columns; j += kKeyStep) logit_columns<kKeyVectors>(block, j);
    for (; j < block.columns; j += kMaxLanes) logit_columns<kVectors>(block, j);
  }

  // p of N vectors of logits. Inlined so that the constants stay in registers over all of a row.
  template <int N>
  [[gnu::always_inline]] static void softmax_columns(const float* u, Float largest, Float c,
                                                     uint8_t* p, ByteSums& sums) {
    Float t[N], e[N];
    for (int v = 0; v < N; ++v) t[v] = V::mul(V::sub(V::load(u + v * W), largest), c);
    exp2_times_255<V>(t, e);
    V::store_rounded(e, p, sums);
  }

  static int64_t softmax(const LogitRow& row, float c, uint8_t* p) {
    Float most = V::load(row.largest);
    for (int v = 1; v < kVectors; ++v) most = V::max(V::load(row.largest + v * W), most);
    const Float largest_v = V::set(V::max_lane(most)), c_v = V::set(c);
    ByteSums sums{};
    const float* block = row.u;
    for (int64_t first = 0; first < row.columns; first += row.block_columns) {
      const int64_t left = row.columns - first;
      const int64_t columns = left < row.block_columns ? left : row.block_columns;
      int64_t j = 0;
      for (; j + kStep <= columns; j += kStep)
        softmax_columns<kStep / W>(block + j, largest_v, c_v, p + first + j, sums);
      for (; j < columns; j += kMaxLanes)
        softmax_columns<kVectors>(block + j, largest_v, c_v, p + first + j, sums);
      block += row.block_stride;
    }
    return V::total(sums);
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

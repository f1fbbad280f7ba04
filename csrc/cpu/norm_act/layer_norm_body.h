// LayerNorm of a few rows over a vector type V (cpu/vector_avx512.h). They stay in the L1 cache
// between the passes: approximate mean; sum and sum of squares about it; normalise.
//
// Sums are kept in 16 lanes on every level, value c in lane c % 16, and the lanes are added in one
// fixed tree.
#pragma once

#include <cmath>

#include "cpu/element_type.h"
#include "cpu/norm_act/norm_act.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kSumLanes = 16;

template <typename V>
struct LaneSums {
  static constexpr int kVectors = static_cast<int>(kSumLanes / V::kWidth);
  typename V::Float lanes[kVectors];

  LaneSums() {
    for (int v = 0; v < kVectors; ++v) lanes[v] = V::set(0.0f);
  }

  float total() const {
    float sums[kSumLanes];
    for (int v = 0; v < kVectors; ++v) V::store(sums + v * V::kWidth, lanes[v]);
    for (int64_t width = kSumLanes / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) sums[i] = sums[i] + sums[i + width];
    return sums[0];
  }
};

template <typename V, typename T>
float row_sum(const T* x, int64_t channels) {
  constexpr int64_t W = V::kWidth;
  LaneSums<V> sum;
  int64_t c = 0;
  for (; c + kSumLanes <= channels; c += kSumLanes)
    for (int v = 0; v < sum.kVectors; ++v)
      sum.lanes[v] = V::add(sum.lanes[v], V::load(x + c + v * W));
  for (int v = 0; c < channels; c += W, ++v)
    sum.lanes[v] = V::add(sum.lanes[v], V::load_first(x + c, channels - c));
  return sum.total();
}

template <typename V, typename T>
void row_moments(const T* x, int64_t channels, float centre, float* sum_out, float* square_out) {
  constexpr int64_t W = V::kWidth;
  const typename V::Float centre_v = V::set(centre);
  LaneSums<V> sum, square;
  int64_t c = 0;
  for (; c + kSumLanes <= channels; c += kSumLanes) {
    for (int v = 0; v < sum.kVectors; ++v) {
      const typename V::Float d = V::sub(V::load(x + c + v * W), centre_v);
      sum.lanes[v] = V::add(sum.lanes[v], d);
      square.lanes[v] = V::fma(d, d, square.lanes[v]);
    }
  }
  for (int v = 0; c < channels; c += W, ++v) {
    const typename V::Float x_v = V::load_first(x + c, channels - c);
    const typename V::Float d = V::keep_first(V::sub(x_v, centre_v), channels - c);
    sum.lanes[v] = V::add(sum.lanes[v], d);
    square.lanes[v] = V::fma(d, d, square.lanes[v]);
  }
  *sum_out = sum.total();
  *square_out = square.total();
}

// y = (x - centre) * scale + shift. The mean is `centre + delta`; x - centre is exact near it, so
// that a mean much larger than the deviation costs no accuracy.
struct RowCoefficients {
  float centre, scale, shift;
};

template <typename V, typename T>
RowCoefficients row_coefficients(const T* x, int64_t channels, float eps) {
  const float centre = row_sum<V>(x, channels) / static_cast<float>(channels);
  float sum, square;
  row_moments<V>(x, channels, centre, &sum, &square);
  const double count = static_cast<double>(channels);
  const double delta = sum / count;
  const double variance = (square - sum * delta) / count;
  const double rstd = 1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + eps);
  return {centre, static_cast<float>(rstd), static_cast<float>(-delta * rstd)};
}

template <typename V, typename T>
void normalize_row(const T* x, int64_t channels, const RowCoefficients& row, const float* weight,
                   const float* bias, float* out) {
  constexpr int64_t W = V::kWidth;
  const typename V::Float centre = V::set(row.centre), scale = V::set(row.scale);
  const typename V::Float shift = V::set(row.shift), one = V::set(1.0f), zero = V::set(0.0f);
  int64_t c = 0;
  for (; c + W <= channels; c += W) {
    const typename V::Float n = V::fma(V::sub(V::load(x + c), centre), scale, shift);
    V::store(out + c,
             V::fma(n, weight ? V::load(weight + c) : one, bias ? V::load(bias + c) : zero));
  }
  if (c < channels) {
    const int64_t count = channels - c;
    const typename V::Float n = V::fma(V::sub(V::load_first(x + c, count), centre), scale, shift);
    const typename V::Float weight_v = weight ? V::load_first(weight + c, count) : one;
    const typename V::Float bias_v = bias ? V::load_first(bias + c, count) : zero;
    V::store_first(out + c, V::fma(n, weight_v, bias_v), count);
  }
}

template <typename V>
struct LayerNormBody {
  static void normalize(const void* x, DType dtype, int64_t rows, int64_t channels, float eps,
                        const float* weight, const float* bias, float* out) {
    with_elements(x, dtype, [&](const auto* elements) {
      RowCoefficients coefficients[kRowBatch];
      for (int64_t i = 0; i < rows; ++i)
        coefficients[i] = row_coefficients<V>(elements + i * channels, channels, eps);
      for (int64_t i = 0; i < rows; ++i)
        normalize_row<V>(elements + i * channels, channels, coefficients[i], weight, bias,
                         out + i * channels);
    });
  }

  static constexpr layer_norm_kernel kKernel = {normalize};
};

}  // namespace
}  // namespace tfq::cpu

// A "vector" of one float: what the interface of vector_avx512.h means, in plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/quant.h"
#include "common/softmax.h"

namespace tfq::cpu {
namespace {

struct VectorScalar {
  using Float = float;
  using ByteSums = int64_t;
  static constexpr int64_t kWidth = 1;
  static constexpr int kUnroll = 1;  // vectors a long dependency chain is interleaved over

  static Float set(float x) { return x; }
  static Float load(const float* x) { return *x; }
  static Float load(const uint16_t* x) { return bf16_to_float(*x); }
  static Float load(const uint8_t* x) { return static_cast<float>(*x); }
  static Float load(const int8_t* x) { return static_cast<float>(*x); }
  static Float load(const int32_t* x) {
    int32_t value;  // copied: a float may be stored in its place
    std::memcpy(&value, x, sizeof value);
    return static_cast<float>(value);
  }
  static Float load_first(const float* x, int64_t) { return load(x); }
  static Float load_first(const uint16_t* x, int64_t) { return load(x); }
  static Float load_first(const uint8_t* x, int64_t) { return load(x); }
  static void store(float* out, Float x) { *out = x; }
  static void store(uint16_t* out, Float x) { *out = float_to_bf16(x); }
  static void store_first(float* out, Float x, int64_t) { store(out, x); }
  static void store_first(uint16_t* out, Float x, int64_t) { store(out, x); }
  static Float keep_first(Float x, int64_t) { return x; }

  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  static Float fma(Float a, Float b, Float c) { return std::fma(a, b, c); }
  static Float min(Float a, Float b) { return a < b ? a : b; }
  static Float max(Float a, Float b) { return a > b ? a : b; }
  static float min_lane(Float x) { return x; }
  static float max_lane(Float x) { return x; }
  static Float minus_abs(Float x) { return -std::fabs(x); }
  static Float select_negative(Float sign, Float a, Float b) { return std::signbit(sign) ? a : b; }

  static Float power(Float, Float shifted) { return shifted; }
  static Float nearest_power(Float t, Float& rest) {
    const Float clamped = max(kExp2Min, t);
    const Float shifted = clamped + kRoundToInteger;
    rest = clamped - (shifted - kRoundToInteger);
    return shifted;
  }
  static Float times_power_of_two(Float x, Float power) {
    uint32_t x_bits, power_bits;
    std::memcpy(&x_bits, &x, sizeof x_bits);
    std::memcpy(&power_bits, &power, sizeof power_bits);
    x_bits += power_bits << 23;
    std::memcpy(&x, &x_bits, sizeof x);
    return x;
  }

  static void store_rounded(const Float (&x)[16], uint8_t* out, ByteSums& sums) {
    for (int i = 0; i < 16; ++i) sums += out[i] = quantize_value(x[i], 1.0f, 0.0f);
  }
  static int64_t total(ByteSums sums) { return sums; }

  static void quantize(const Float (&x)[4], Float r, Float z, uint8_t* out) {
    for (int i = 0; i < 4; ++i) out[i] = quantize_value(x[i], r, z);
  }
  static void quantize_first(Float x, Float r, Float z, uint8_t* out, int64_t) {
    *out = quantize_value(x, r, z);
  }
};

}  // namespace
}  // namespace tfq::cpu

// Eight floats in a register: the interface of vector_avx512.h for AVX2.
#pragma once

#include "common/softmax.h"
#include "cpu/simd_avx2.h"

namespace tfq::cpu {
namespace {

struct VectorAvx2 {
  using Float = __m256;
  using ByteSums = __m256i;  // 4 integers of 64 bits
  static constexpr int64_t kWidth = kLanes;
  static constexpr int kUnroll = 4;  // 8 would not fit 16 registers

  static Float set(float x) { return _mm256_set1_ps(x); }
  static Float load(const float* x) { return _mm256_loadu_ps(x); }
  static Float load(const uint16_t* x) {
    return bf16_to_f32x8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static Float load(const uint8_t* x) {
    return u8_to_f32x8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
  }
  static Float load(const int8_t* x) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static Float load(const int32_t* x) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static Float load_first(const float* x, int64_t count) {
    return load_f32x8(x, DType::kFloat32, 0, count);
  }
  static Float load_first(const uint16_t* x, int64_t count) {
    return load_f32x8(x, DType::kBFloat16, 0, count);
  }
  static Float load_first(const uint8_t* x, int64_t count) {
    if (count >= kLanes) return load(x);
    uint8_t lanes[kLanes] = {};
    std::memcpy(lanes, x, static_cast<size_t>(count));
    return load(lanes);
  }
  static void store(float* out, Float x) { _mm256_storeu_ps(out, x); }
  static void store(uint16_t* out, Float x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), f32x8_to_bf16(x));
  }
  static void store_first(float* out, Float x, int64_t count) {
    store_lanes(out, &x, count < kLanes ? count : kLanes, sizeof(float));
  }
  static void store_first(uint16_t* out, Float x, int64_t count) {
    const __m128i words = f32x8_to_bf16(x);
    store_lanes(out, &words, count < kLanes ? count : kLanes, sizeof(uint16_t));
  }
  static Float keep_first(Float x, int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count)), lane);
    return _mm256_and_ps(x, _mm256_castsi256_ps(kept));
  }

  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static float min_lane(Float x) {
    __m128 y = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_min_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_min_ss(y, _mm_movehdup_ps(y)));
  }
  static float max_lane(Float x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static Float minus_abs(Float x) { return _mm256_or_ps(x, _mm256_set1_ps(-0.0f)); }
  static Float select_negative(Float sign, Float a, Float b) {
    return _mm256_blendv_ps(b, a, sign);
  }

  // n + kRoundToInteger, whose low bits are n's.
  static Float power(Float, Float shifted) { return shifted; }
  static Float nearest_power(Float t, Float& rest) {
    const Float clamped = max(set(kExp2Min), t);
    const Float shifted = add(clamped, set(kRoundToInteger));
    rest = sub(clamped, sub(shifted, set(kRoundToInteger)));
    return shifted;
  }
  static Float times_power_of_two(Float x, Float power) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(power), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
  }

  static void store_rounded(const Float (&x)[2], uint8_t* out, ByteSums& sums) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
    const __m128i low = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), low);
    add_bytes(_mm256_zextsi128_si256(low), sums);
  }
  static void store_rounded(const Float (&x)[4], uint8_t* out, ByteSums& sums) {
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(x[i]);
    const __m256i bytes =
        pack_u8x32(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
    add_bytes(bytes, sums);
  }
  static void add_bytes(__m256i bytes, ByteSums& sums) {
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  }
  static int64_t total(ByteSums sums) {
    const __m128i two =
        _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
  }

  // Four vectors of int32 that _mm256_packs_epi32 packed in pairs, in their order as bytes: undoes
  // the packs' 128-bit halves.
  static __m256i pack_u8x32(__m256i low_i16x16, __m256i high_i16x16) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low_i16x16, high_i16x16), order);
  }

  // Without a clamp at -z, as in vector_avx512.h.
  static void quantize(const Float (&x)[4], Float r, Float z, uint8_t* out) {
    const __m256 high = _mm256_sub_ps(_mm256_set1_ps(255.0f), z);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 v = _mm256_mul_ps(x[i], r);
      const __m256 ordered = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
      q[i] = _mm256_cvtps_epi32(_mm256_min_ps(ordered, high));
    }
    const __m256i z_i32x8 = _mm256_cvtps_epi32(z);
    const __m256i z_i16x16 = _mm256_packs_epi32(z_i32x8, z_i32x8);
    const __m256i low_i16x16 = _mm256_adds_epi16(_mm256_packs_epi32(q[0], q[1]), z_i16x16);
    const __m256i high_i16x16 = _mm256_adds_epi16(_mm256_packs_epi32(q[2], q[3]), z_i16x16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), pack_u8x32(low_i16x16, high_i16x16));
  }
  static void quantize_first(Float x, Float r, Float z, uint8_t* out, int64_t count) {
    const __m128i bytes = quantize_u8x8(x, r, z);
    store_lanes(out, &bytes, count < kLanes ? count : kLanes, sizeof(uint8_t));
  }
};

}  // namespace
}  // namespace tfq::cpu

// The AVX2 wrappers shared by the kernels of level avx2. Internal linkage.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__)
#error "simd_avx2.h needs -mavx2 -mfma (cmake/TfqIsa.cmake)"
#endif
#ifdef __AVX512F__
#error "simd_avx2.h must not be compiled for AVX-512: its kernels run on machines without it"
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "common/api.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kLanes = 8;

inline __m256 bf16_to_f32x8(__m128i x_bf16x8) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x_bf16x8), 16));
}

// Of the low 8 bytes.
inline __m256 u8_to_f32x8(__m128i x_u8) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x_u8)); }

// Round to nearest even, NaN stays NaN: float_to_bf16 of common/quant.h on 8 lanes.
inline __m128i f32x8_to_bf16(__m256 x_f32x8) {
  const __m256i bits = _mm256_castps_si256(x_f32x8);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x_f32x8, x_f32x8, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, is_nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// `count` floats (at most 8) from a float32 or bfloat16 array; the other lanes are 0.
inline __m256 load_f32x8(const void* data, DType dtype, int64_t index, int64_t count) {
  if (dtype == DType::kFloat32) {
    const float* x = static_cast<const float*>(data) + index;
    if (count >= kLanes) return _mm256_loadu_ps(x);
    float lanes[kLanes] = {};
    std::memcpy(lanes, x, static_cast<size_t>(count) * sizeof(float));
    return _mm256_loadu_ps(lanes);
  }
  const uint16_t* x = static_cast<const uint16_t*>(data) + index;
  if (count >= kLanes) return bf16_to_f32x8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, x, static_cast<size_t>(count) * sizeof(uint16_t));
  return bf16_to_f32x8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes)));
}

// Stores the first `count` (at most 8) elements of `size` bytes each held in `lanes`.
inline void store_lanes(void* out, const void* lanes, int64_t count, int64_t size) {
  std::memcpy(out, lanes, static_cast<size_t>(count * size));
}

// quantize_value of common/quant.h on 8 lanes; the 8 results are in the low half.
inline __m128i quantize_u8x8(__m256 x_f32x8, __m256 r, __m256 z) {
  __m256 v = _mm256_mul_ps(x_f32x8, r);
  v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
  v = _mm256_max_ps(v, _mm256_sub_ps(_mm256_setzero_ps(), z));
  v = _mm256_min_ps(v, _mm256_sub_ps(_mm256_set1_ps(255.0f), z));
  const __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_cvtps_epi32(z));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  return _mm_packus_epi16(words, words);
}

}  // namespace
}  // namespace tfq::cpu

// The AVX-512 wrappers shared by the kernels of level avx512vnni and above. Internal linkage.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__)
#error "simd_avx512.h needs -mavx512f -mavx512bw -mavx512vl -mavx512dq (cmake/TfqIsa.cmake)"
#endif

// GCC 12 warns of its own _mm512_undefined_ps (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#include "common/api.h"

namespace tfq::cpu {
namespace {

// Mask of the first `count` of 16 lanes (all 16 when count >= 16).
inline __mmask16 lane_mask(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << count) - 1u);
}

inline __m512 bf16_to_f32x16(__m256i x_bf16x16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x_bf16x16), 16));
}

inline __m512 u8_to_f32x16(__m128i x_u8x16) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x_u8x16));
}

// Round to nearest even in integer arithmetic: VCVTNEPS2BF16 would flush subnormals, and so differ
// from the other levels.
inline __m256i f32x16_to_bf16(__m512 x_f32x16) {
  const __m512i bits = _mm512_castps_si512(x_f32x16);
  const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x_f32x16, x_f32x16, _CMP_UNORD_Q);
  __m512i y = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  y = _mm512_mask_add_epi32(y, is_odd, y, _mm512_set1_epi32(1));
  y = _mm512_mask_or_epi32(y, is_nan, bits, _mm512_set1_epi32(1 << 22));  // quiet
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16));
}

// 16 floats from a float32 or bfloat16 array; lanes outside `mask` are 0.
inline __m512 load_f32x16(const void* data, DType dtype, int64_t index, __mmask16 mask) {
  if (dtype == DType::kFloat32)
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + index);
  return bf16_to_f32x16(_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + index));
}

// quantize_value of common/quant.h on 16 lanes.
inline __m128i quantize_u8x16(__m512 x_f32x16, __m512 r, __m512 z) {
  __m512 v = _mm512_mul_ps(x_f32x16, r);
  v = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
  v = _mm512_max_ps(v, _mm512_sub_ps(_mm512_setzero_ps(), z));
  v = _mm512_min_ps(v, _mm512_sub_ps(_mm512_set1_ps(255.0f), z));
  const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_cvtps_epi32(z));
  return _mm512_cvtepi32_epi8(q);
}

}  // namespace
}  // namespace tfq::cpu

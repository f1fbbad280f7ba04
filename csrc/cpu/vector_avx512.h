// Sixteen floats in a register. The bodies of the memory-bound kernels (quantize/, norm_act/) are
// written once over this interface and instantiated for each level from a struct of that level's
// own name, so that they cannot differ between levels and no instantiation is shared between them.
// Every function works lane by lane; nothing here depends on the number of lanes.
//
//   load                                      float32; bfloat16 and integers of 8 bits become it,
//                                             int32 is rounded
//   store                                     as float32, or rounded to bfloat16
//   load_first, store_first, quantize_first   `count` lanes of memory, all when count >= kWidth;
//                                             the other lanes load as 0
//   keep_first(x, count)                      the other lanes become 0
//   min(a, b), max(a, b)                      b when either is NaN
//   min_lane(x), max_lane(x)                  of all lanes, none of them NaN
//   select_negative(sign, a, b)               a where the sign bit of `sign` is set, else b
//   power(n, shifted)                         an integer n as times_power_of_two takes it, given
//                                             that and n + kRoundToInteger
//   nearest_power(t, rest)                    t <= 0, or -126 where it is less, as such an integer,
//                                             ties to even, and the rest; levels may leave what is
//                                             less as it is
//   times_power_of_two(x, power)              for a normal result; what is less may be 0
//   store_rounded(x, out, sums)               16 floats, or kUnroll vectors, as uint8: rne,
//                                             clamped, NaN becomes 0; their sum is added to sums
//   total(sums)                               of a ByteSums{} and what was added
//   quantize                                  quantize_value of common/quant.h on four vectors
#pragma once

#include "cpu/simd_avx512.h"

namespace tfq::cpu {
namespace {

struct VectorAvx512 {
  using Float = __m512;
  using ByteSums = __m512i;  // 8 integers of 64 bits
  static constexpr int64_t kWidth = 16;
  static constexpr int kUnroll = 4;  // 8 would spill

  static Float set(float x) { return _mm512_set1_ps(x); }
  static Float load(const float* x) { return _mm512_loadu_ps(x); }
  static Float load(const uint16_t* x) {
    return bf16_to_f32x16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static Float load(const uint8_t* x) {
    return u8_to_f32x16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static Float load(const int8_t* x) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  static Float load(const int32_t* x) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(x)); }
  static Float load_first(const float* x, int64_t count) {
    return load_f32x16(x, DType::kFloat32, 0, lane_mask(count));
  }
  static Float load_first(const uint16_t* x, int64_t count) {
    return load_f32x16(x, DType::kBFloat16, 0, lane_mask(count));
  }
  static Float load_first(const uint8_t* x, int64_t count) {
    return u8_to_f32x16(_mm_maskz_loadu_epi8(lane_mask(count), x));
  }
  static void store(float* out, Float x) { _mm512_storeu_ps(out, x); }
  static void store(uint16_t* out, Float x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), f32x16_to_bf16(x));
  }
  static void store_first(float* out, Float x, int64_t count) {
    _mm512_mask_storeu_ps(out, lane_mask(count), x);
  }
  static void store_first(uint16_t* out, Float x, int64_t count) {
    _mm256_mask_storeu_epi16(out, lane_mask(count), f32x16_to_bf16(x));
  }
  static Float keep_first(Float x, int64_t count) {
    return _mm512_maskz_mov_ps(lane_mask(count), x);
  }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static float min_lane(Float x) { return _mm512_reduce_min_ps(x); }
  static float max_lane(Float x) { return _mm512_reduce_max_ps(x); }
  static Float minus_abs(Float x) { return _mm512_or_ps(x, _mm512_set1_ps(-0.0f)); }
  static Float select_negative(Float sign, Float a, Float b) {
    return _mm512_mask_mov_ps(b, _mm512_movepi32_mask(_mm512_castps_si512(sign)), a);
  }

  // VSCALEFPS takes any n.
  static Float power(Float n, Float) { return n; }
  static Float nearest_power(Float t, Float& rest) {
    const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    rest = _mm512_sub_ps(t, n);
    return n;
  }
  static Float times_power_of_two(Float x, Float power) { return _mm512_scalef_ps(x, power); }

  static void store_rounded(const Float (&x)[1], uint8_t* out, ByteSums& sums) {
    const __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(x[0]), _mm512_setzero_si512());
    const __m128i bytes = _mm512_cvtusepi32_epi8(q);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    add_bytes(_mm512_zextsi128_si512(bytes), sums);
  }
  static void store_rounded(const Float (&x)[4], uint8_t* out, ByteSums& sums) {
    __m512i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm512_cvtps_epi32(x[i]);
    const __m512i bytes =
        pack_u8x64(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    _mm512_storeu_si512(out, bytes);
    add_bytes(bytes, sums);
  }
  static void add_bytes(__m512i bytes, ByteSums& sums) {
    sums = _mm512_add_epi64(sums, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
  }
  static int64_t total(ByteSums sums) { return _mm512_reduce_add_epi64(sums); }

  // Four vectors of int32 that _mm512_packs_epi32 packed in pairs, in their order as bytes: undoes
  // the packs' 128-bit quarters.
  static __m512i pack_u8x64(__m512i low_i16x32, __m512i high_i16x32) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low_i16x32, high_i16x32));
  }

  // Values below -z need no clamp: the packs saturate (a conversion out of range gives the smallest
  // integer), and the smallest 16-bit integer plus z still packs to 0.
  static void quantize(const Float (&x)[4], Float r, Float z, uint8_t* out) {
    const __m512 high = _mm512_sub_ps(_mm512_set1_ps(255.0f), z);
    __m512i q[4];
    for (int i = 0; i < 4; ++i) {
      const __m512 v = _mm512_mul_ps(x[i], r);
      q[i] = _mm512_cvtps_epi32(_mm512_maskz_min_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v, high));
    }
    const __m512i z_i32x16 = _mm512_cvtps_epi32(z);
    const __m512i z_i16x32 = _mm512_packs_epi32(z_i32x16, z_i32x16);
    const __m512i low_i16x32 = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), z_i16x32);
    const __m512i high_i16x32 = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), z_i16x32);
    _mm512_storeu_si512(out, pack_u8x64(low_i16x32, high_i16x32));
  }
  static void quantize_first(Float x, Float r, Float z, uint8_t* out, int64_t count) {
    _mm_mask_storeu_epi8(out, lane_mask(count), quantize_u8x16(x, r, z));
  }
};

}  // namespace
}  // namespace tfq::cpu

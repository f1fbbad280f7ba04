// Dequantisation of one block over a vector type V (cpu/vector_avx512.h). The block is first turned
// from quads to rows, 1 KiB in L1, with SSE2, which every level has: a dword is four values of k of
// a column, so 4 x 4 dwords transpose at a time. Then a load, a conversion, a product and a store
// for each vector, of which the stores to memory are the limit.
#pragma once

#include <emmintrin.h>

#include "cpu/dequantize_weight/dequantize_weight.h"
#include "cpu/gemm_s8/packed_layout.h"

namespace tfq::cpu {
namespace {

// rows (16, 64) <- packed (16 quads, 16, 4).
inline void quads_to_rows(const int8_t* packed, int8_t* rows) {
  const auto load = [&](int64_t quad, int64_t column) {
    return _mm_loadu_si128(
        reinterpret_cast<const __m128i*>(packed + quad * kQuadBytes + column * kQuad));
  };
  const auto store = [&](int64_t column, int64_t quad, __m128i x) {
    _mm_store_si128(reinterpret_cast<__m128i*>(rows + column * kBlockK + quad * kQuad), x);
  };
  for (int64_t quad = 0; quad < kBlockK / kQuad; quad += 4) {
    for (int64_t column = 0; column < kPanelColumns; column += 4) {
      const __m128i a = load(quad, column), b = load(quad + 1, column);
      const __m128i c = load(quad + 2, column), d = load(quad + 3, column);
      const __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
      const __m128i cd_low = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);
      store(column, quad, _mm_unpacklo_epi64(ab_low, cd_low));
      store(column + 1, quad, _mm_unpackhi_epi64(ab_low, cd_low));
      store(column + 2, quad, _mm_unpacklo_epi64(ab_high, cd_high));
      store(column + 3, quad, _mm_unpackhi_epi64(ab_high, cd_high));
    }
  }
}

template <typename V>
struct DequantizeWeightBody {
  template <typename T>
  static void row(const int8_t* values, int64_t count, typename V::Float scale, T* out) {
    constexpr int64_t W = V::kWidth;
    int64_t i = 0;
    for (; i + W <= count; i += W) V::store(out + i, V::mul(V::load(values + i), scale));
    if (i < count) V::store_first(out + i, V::mul(V::load(values + i), scale), count - i);
  }

  static void block(const int8_t* packed, int64_t columns, int64_t count, const float* scale,
                    DType dtype, void* out, int64_t out_stride) {
    alignas(64) int8_t rows[kBlockBytes];
    quads_to_rows(packed, rows);
    for (int64_t j = 0; j < columns; ++j) {
      const int8_t* values = rows + j * kBlockK;
      if (dtype == DType::kFloat32) {
        row(values, count, V::set(scale[j]), static_cast<float*>(out) + j * out_stride);
      } else {
        row(values, count, V::set(scale[j]), static_cast<uint16_t*>(out) + j * out_stride);
      }
    }
  }

  static constexpr dequantize_weight_kernel kKernel = {block};
};

}  // namespace
}  // namespace tfq::cpu

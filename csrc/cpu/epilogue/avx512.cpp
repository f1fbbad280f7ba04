// Epilogue, AVX-512: 16 columns a vector. The per-column coefficients (z * weight_sum, s *
// weight_scale, bias + temporal) depend on the row only through its group and sample. They live in
// registers, three per vector, and are rebuilt when either changes: once per image for a
// convolution, at every row for per-token scales.
#include "cpu/epilogue/epilogue.h"
#include "cpu/norm_act/activation.h"
#include "cpu/vector_avx512.h"
#include "cpu/simd_avx512.h"

namespace tfq::cpu {
namespace {

template <int Vectors>
struct Coefficients {
  __m512i correction_i32x16[Vectors];
  __m512 scale_f32x16[Vectors];
  __m512 offset_f32x16[Vectors];
};

template <int Vectors>
void prepare(Coefficients<Vectors>& k, const EpilogueBlock& block, const Epilogue& e,
             const __mmask16* masks, int64_t group, int64_t sample) {
  const float* input = e.input.data + group * e.input.stride;
  const float* temporal = temporal_row(e, sample);
  const __m512i zero_point = _mm512_set1_epi32(static_cast<int32_t>(input[2]));
  const __m512 s = _mm512_set1_ps(input[0]);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const int64_t c = block.column + v * 16;
    k.correction_i32x16[v] =
        _mm512_mullo_epi32(zero_point, _mm512_maskz_loadu_epi32(masks[v], e.weight_sum + c));
    k.scale_f32x16[v] = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(masks[v], e.weight_scale + c));
    __m512 offset = e.bias ? _mm512_maskz_loadu_ps(masks[v], e.bias + c) : _mm512_setzero_ps();
    if (temporal) offset = _mm512_add_ps(offset, _mm512_maskz_loadu_ps(masks[v], temporal + c));
    k.offset_f32x16[v] = offset;
  }
}

void store_float(const Epilogue& e, int64_t index, __mmask16 mask, __m512 y) {
  if (e.out_dtype == DType::kFloat32) {
    _mm512_mask_storeu_ps(static_cast<float*>(e.out) + index, mask, y);
  } else {
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(e.out) + index, mask, f32x16_to_bf16(y));
  }
}

void store_quantized(const Epilogue& e, uint8_t* out, int64_t index, __mmask16 mask, int64_t group,
                     __m512 y) {
  const float* requant = e.requant.data + group * e.requant.stride;
  const __m128i q = quantize_u8x16(y, _mm512_set1_ps(requant[1]), _mm512_set1_ps(requant[2]));
  _mm_mask_storeu_epi8(out + index, mask, q);
}

template <int Vectors>
void store_columns(const EpilogueBlock& block, const Epilogue& e) {
  Coefficients<Vectors> k;
  __mmask16 masks[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) masks[v] = lane_mask(block.columns - v * 16);
  uint8_t* quantized =
      e.out_dtype == DType::kUInt8 ? static_cast<uint8_t*>(e.out) : e.quantized_out;
  const int64_t rows_per_sample = e.temporal ? e.rows_per_sample : block.row + block.rows;
  int64_t group = -1, sample = -1;
  int64_t next_group_row = block.row, next_sample_row = block.row;
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row + i;
    if (row == next_group_row || row == next_sample_row) {
      group = row / e.rows_per_group;
      sample = row / rows_per_sample;
      next_group_row = (group + 1) * e.rows_per_group;
      next_sample_row = (sample + 1) * rows_per_sample;
      prepare<Vectors>(k, block, e, masks, group, sample);
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const int64_t index = row * block.n + block.column + v * 16;
      const __m512i acc = _mm512_loadu_si512(block.acc + i * block.acc_stride + v * 16);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, k.correction_i32x16[v]));
      __m512 y = _mm512_fmadd_ps(sum, k.scale_f32x16[v], k.offset_f32x16[v]);
      if (e.residual)
        y = _mm512_add_ps(y, load_f32x16(e.residual, e.residual_dtype, index, masks[v]));
      if (e.activation == Activation::kSilu) silu<VectorAvx512>(y);
      if (quantized) store_quantized(e, quantized, index, masks[v], group, y);
      if (e.out_dtype != DType::kUInt8) store_float(e, index, masks[v], y);
    }
  }
}

void store(const EpilogueBlock& block, const Epilogue& e) {
  constexpr void (*by_vectors[])(const EpilogueBlock&, const Epilogue&) = {
      store_columns<1>, store_columns<2>, store_columns<3>, store_columns<4>};
  by_vectors[(block.columns + 15) / 16 - 1](block, e);
}

}  // namespace

extern const epilogue_kernel epilogue_avx512;
const epilogue_kernel epilogue_avx512 = {store};

}  // namespace tfq::cpu

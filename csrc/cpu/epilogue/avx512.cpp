// Epilogue, AVX-512: 16 columns a step. The per-column coefficients (z * weight_sum, s * weight_scale,
// bias + temporal) depend on the row only through its group and sample, so they are kept in an L1 buffer
// and rebuilt when either changes: once per image for a convolution, once per row for per-token scales.
#include "common/math.h"
#include "cpu/epilogue/epilogue.h"
#include "cpu/simd_avx512.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kVectors = kMaxEpilogueColumns / 16;

struct Coefficients {
  __m512i correction[kVectors];
  __m512 scale[kVectors];
  __m512 offset[kVectors];
};

void prepare(Coefficients& k, const EpilogueBlock& block, const Epilogue& e, int64_t group,
             int64_t sample) {
  const float* input = e.input.data + group * e.input.stride;
  const float* temporal = e.temporal ? e.temporal + sample * e.temporal_stride : nullptr;
  const __m512i zero_point = _mm512_set1_epi32(static_cast<int32_t>(input[2]));
  const __m512 s = _mm512_set1_ps(input[0]);
  for (int64_t v = 0; v * 16 < block.columns; ++v) {
    const int64_t c = block.column + v * 16;
    const __mmask16 mask = lane_mask(block.columns - v * 16);
    k.correction[v] = _mm512_mullo_epi32(zero_point, _mm512_maskz_loadu_epi32(mask, e.weight_sum + c));
    k.scale[v] = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(mask, e.weight_scale + c));
    __m512 offset = e.bias ? _mm512_maskz_loadu_ps(mask, e.bias + c) : _mm512_setzero_ps();
    if (temporal) offset = _mm512_add_ps(offset, _mm512_maskz_loadu_ps(mask, temporal + c));
    k.offset[v] = offset;
  }
}

void store(const EpilogueBlock& block, const Epilogue& e) {
  Coefficients k;
  int64_t group = -1, sample = -1;
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row + i;
    const int64_t row_group = row / e.rows_per_group;
    const int64_t row_sample = e.temporal ? row / e.rows_per_sample : 0;
    if (row_group != group || row_sample != sample) {
      group = row_group;
      sample = row_sample;
      prepare(k, block, e, group, sample);
    }
    for (int64_t v = 0; v * 16 < block.columns; ++v) {
      const __mmask16 mask = lane_mask(block.columns - v * 16);
      const int64_t index = row * block.n + block.column + v * 16;
      const __m512i acc = _mm512_maskz_loadu_epi32(mask, block.acc + i * block.acc_stride + v * 16);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, k.correction[v]));
      __m512 y = _mm512_fmadd_ps(sum, k.scale[v], k.offset[v]);
      if (e.residual) y = _mm512_add_ps(y, load_f32x16(e.residual, e.residual_dtype, index, mask));
      if (e.out_dtype == DType::kFloat32) {
        _mm512_mask_storeu_ps(static_cast<float*>(e.out) + index, mask, y);
      } else if (e.out_dtype == DType::kBFloat16) {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(e.out) + index, mask, f32x16_to_bf16(y));
      } else {
        const float* requant = e.requant.data + group * e.requant.stride;
        const __m128i q = quantize_u8x16(y, _mm512_set1_ps(requant[1]), _mm512_set1_ps(requant[2]));
        _mm_mask_storeu_epi8(static_cast<uint8_t*>(e.out) + index, mask, q);
      }
    }
  }
}

}  // namespace

extern const epilogue_kernel epilogue_avx512;
const epilogue_kernel epilogue_avx512 = {store};

}  // namespace tfq::cpu

// Epilogue, AVX2: 8 columns a step, otherwise as epilogue/avx512.cpp.
#include "common/math.h"
#include "cpu/epilogue/epilogue.h"
#include "cpu/norm_act/activation.h"
#include "cpu/simd_avx2.h"
#include "cpu/vector_avx2.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kVectors = kMaxEpilogueColumns / kLanes;

struct Coefficients {
  __m256i correction[kVectors];
  __m256 scale[kVectors];
  __m256 offset[kVectors];
};

__m256i load_i32x8(const int32_t* data, int64_t count) {
  if (count >= kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  int32_t lanes[kLanes] = {};
  std::memcpy(lanes, data, static_cast<size_t>(count) * sizeof(int32_t));
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
}

void prepare(Coefficients& k, const EpilogueBlock& block, const Epilogue& e, int64_t group,
             int64_t sample) {
  const float* input = e.input.data + group * e.input.stride;
  const float* temporal = temporal_row(e, sample);
  const __m256i zero_point = _mm256_set1_epi32(static_cast<int32_t>(input[2]));
  const __m256 s = _mm256_set1_ps(input[0]);
  for (int64_t v = 0; v * kLanes < block.columns; ++v) {
    const int64_t c = block.column + v * kLanes;
    const int64_t count = block.columns - v * kLanes;
    k.correction[v] = _mm256_mullo_epi32(zero_point, load_i32x8(e.weight_sum + c, count));
    k.scale[v] = _mm256_mul_ps(s, load_f32x8(e.weight_scale, DType::kFloat32, c, count));
    __m256 offset = e.bias ? load_f32x8(e.bias, DType::kFloat32, c, count) : _mm256_setzero_ps();
    if (temporal) offset = _mm256_add_ps(offset, load_f32x8(temporal, DType::kFloat32, c, count));
    k.offset[v] = offset;
  }
}

void store_float(const Epilogue& e, int64_t index, int64_t count, __m256 y) {
  const bool full = count >= kLanes;
  if (e.out_dtype == DType::kFloat32) {
    float* out = static_cast<float*>(e.out) + index;
    if (full) return _mm256_storeu_ps(out, y);
    store_lanes(out, &y, count, sizeof(float));
  } else {
    const __m128i words = f32x8_to_bf16(y);
    store_lanes(static_cast<uint16_t*>(e.out) + index, &words, full ? kLanes : count,
                sizeof(uint16_t));
  }
}

void store_quantized(const Epilogue& e, uint8_t* out, int64_t index, int64_t count, int64_t group,
                     __m256 y) {
  const float* requant = e.requant.data + group * e.requant.stride;
  const __m128i bytes = quantize_u8x8(y, _mm256_set1_ps(requant[1]), _mm256_set1_ps(requant[2]));
  store_lanes(out + index, &bytes, count < kLanes ? count : kLanes, sizeof(uint8_t));
}

void store(const EpilogueBlock& block, const Epilogue& e) {
  Coefficients k;
  uint8_t* quantized =
      e.out_dtype == DType::kUInt8 ? static_cast<uint8_t*>(e.out) : e.quantized_out;
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
    for (int64_t v = 0; v * kLanes < block.columns; ++v) {
      const int64_t count = block.columns - v * kLanes;
      const int64_t index = row * block.n + block.column + v * kLanes;
      const __m256i acc = load_i32x8(block.acc + i * block.acc_stride + v * kLanes, count);
      const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(acc, k.correction[v]));
      __m256 y = _mm256_fmadd_ps(sum, k.scale[v], k.offset[v]);
      if (e.residual) y = _mm256_add_ps(y, load_f32x8(e.residual, e.residual_dtype, index, count));
      if (e.activation == Activation::kSilu) silu<VectorAvx2>(y);
      if (quantized) store_quantized(e, quantized, index, count, group, y);
      if (e.out_dtype != DType::kUInt8) store_float(e, index, count, y);
    }
  }
}

}  // namespace

extern const epilogue_kernel epilogue_avx2;
const epilogue_kernel epilogue_avx2 = {store};

}  // namespace tfq::cpu

// Epilogue, AVX-512: 16 columns a vector. What belongs to a column (weight_sum, weight_scale, bias
// + temporal) stays in three registers a vector for all rows of a block, its products with the
// group's z and s in two more for the run of rows that shares them: whole images of a convolution,
// a single row for per-token scales. What else varies between calls (types, a residual) is a
// template argument, so that a vector takes four operations, a load and a store: 24 of them hide in
// the tail of a block of products.
#include "common/math.h"
#include "cpu/epilogue/epilogue.h"
#include "cpu/norm_act/activation.h"
#include "cpu/simd_avx512.h"
#include "cpu/vector_avx512.h"

namespace tfq::cpu {
namespace {

enum class Residual { kNone, kFloat32, kBFloat16 };

// What belongs to the columns of a block, for the rows of one sample.
template <int Vectors>
struct Columns {
  __m512i weight_sum_i32x16[Vectors];
  __m512 weight_scale_f32x16[Vectors];
  __m512 offset_f32x16[Vectors];
};

// The same with the parameters of a group.
template <int Vectors>
struct Coefficients {
  __m512i correction_i32x16[Vectors];
  __m512 scale_f32x16[Vectors];
  const __m512* offset_f32x16;
};

template <int Vectors>
inline void load_columns(Columns<Vectors>& c, int64_t column, const Epilogue& e,
                         const __mmask16* masks, int64_t sample) {
  const float* temporal = temporal_row(e, sample);
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const int64_t i = column + v * 16;
    c.weight_sum_i32x16[v] = _mm512_maskz_loadu_epi32(masks[v], e.weight_sum + i);
    c.weight_scale_f32x16[v] = _mm512_maskz_loadu_ps(masks[v], e.weight_scale + i);
    __m512 offset = e.bias ? _mm512_maskz_loadu_ps(masks[v], e.bias + i) : _mm512_setzero_ps();
    if (temporal) offset = _mm512_add_ps(offset, _mm512_maskz_loadu_ps(masks[v], temporal + i));
    c.offset_f32x16[v] = offset;
  }
}

template <int Vectors>
inline Coefficients<Vectors> coefficients(const Columns<Vectors>& c, const Epilogue& e,
                                          int64_t group) {
  const float* input = e.input.data + group * e.input.stride;
  const __m512i zero_point = _mm512_set1_epi32(static_cast<int32_t>(input[2]));
  const __m512 s = _mm512_set1_ps(input[0]);
  Coefficients<Vectors> k;
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    k.correction_i32x16[v] = _mm512_mullo_epi32(zero_point, c.weight_sum_i32x16[v]);
    k.scale_f32x16[v] = _mm512_mul_ps(s, c.weight_scale_f32x16[v]);
  }
  k.offset_f32x16 = c.offset_f32x16;
  return k;
}

// Rows [first, end) of the block, of one group and sample.
template <int Vectors, DType Out, Residual kResidual>
inline void store_run(const Coefficients<Vectors>& k, const EpilogueBlock& block, const Epilogue& e,
                      const __mmask16* masks, int64_t first, int64_t end, int64_t group) {
  const int32_t* acc = block.acc + (first - block.row) * block.acc_stride;
  const int64_t acc_stride = block.acc_stride, n = block.n;
  const void* const residual = e.residual;
  void* const out = e.out;
  uint8_t* const quantized = Out == DType::kUInt8 ? static_cast<uint8_t*>(e.out) : e.quantized_out;
  const bool is_activated = e.activation == Activation::kSilu;
  __m512 r = _mm512_setzero_ps(), z = r;
  if (quantized != nullptr) {
    r = _mm512_set1_ps(e.requant.data[group * e.requant.stride + 1]);
    z = _mm512_set1_ps(e.requant.data[group * e.requant.stride + 2]);
  }
  int64_t index = first * n + block.column;
  for (int64_t row = first; row < end; ++row, index += n, acc += acc_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const int64_t i = index + v * 16;
      const __m512i sum =
          _mm512_sub_epi32(_mm512_loadu_si512(acc + v * 16), k.correction_i32x16[v]);
      __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), k.scale_f32x16[v], k.offset_f32x16[v]);
      if (kResidual != Residual::kNone)
        y = _mm512_add_ps(
            y, load_f32x16(residual,
                           kResidual == Residual::kFloat32 ? DType::kFloat32 : DType::kBFloat16, i,
                           masks[v]));
      if (is_activated) silu<VectorAvx512>(y);
      if (quantized != nullptr)
        _mm_mask_storeu_epi8(quantized + i, masks[v], quantize_u8x16(y, r, z));
      if (Out == DType::kFloat32) _mm512_mask_storeu_ps(static_cast<float*>(out) + i, masks[v], y);
      if (Out == DType::kBFloat16)
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out) + i, masks[v], f32x16_to_bf16(y));
    }
  }
}

template <int Vectors, DType Out, Residual kResidual>
void store_columns(const EpilogueBlock& block, const Epilogue& e) {
  __mmask16 masks[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) masks[v] = lane_mask(block.columns - v * 16);
  const int64_t end = block.row + block.rows;
  const int64_t rows_per_sample = e.temporal ? e.rows_per_sample : end;
  int64_t group = block.row / e.rows_per_group, sample = block.row / rows_per_sample;
  Columns<Vectors> columns;
  load_columns<Vectors>(columns, block.column, e, masks, sample);
  for (int64_t row = block.row; row < end;) {
    const int64_t group_end = (group + 1) * e.rows_per_group;
    const int64_t sample_end = (sample + 1) * rows_per_sample;
    const int64_t run_end = min_of(end, min_of(group_end, sample_end));
    store_run<Vectors, Out, kResidual>(coefficients(columns, e, group), block, e, masks, row,
                                       run_end, group);
    row = run_end;
    group += row == group_end;
    if (row == sample_end && row < end)
      load_columns<Vectors>(columns, block.column, e, masks, ++sample);
  }
}

using StoreFn = void (*)(const EpilogueBlock&, const Epilogue&);

template <DType Out, Residual kResidual>
StoreFn by_vectors(int64_t columns) {
  constexpr StoreFn kTable[] = {store_columns<1, Out, kResidual>, store_columns<2, Out, kResidual>,
                                store_columns<3, Out, kResidual>, store_columns<4, Out, kResidual>};
  return kTable[(columns + 15) / 16 - 1];
}

template <DType Out>
StoreFn by_residual(const Epilogue& e, int64_t columns) {
  if (e.residual == nullptr) return by_vectors<Out, Residual::kNone>(columns);
  return e.residual_dtype == DType::kFloat32 ? by_vectors<Out, Residual::kFloat32>(columns)
                                             : by_vectors<Out, Residual::kBFloat16>(columns);
}

void store(const EpilogueBlock& block, const Epilogue& e) {
  const auto choose = e.out_dtype == DType::kFloat32    ? by_residual<DType::kFloat32>
                      : e.out_dtype == DType::kBFloat16 ? by_residual<DType::kBFloat16>
                                                        : by_residual<DType::kUInt8>;
  choose(e, block.columns)(block, e);
}

}  // namespace

extern const epilogue_kernel epilogue_avx512;
const epilogue_kernel epilogue_avx512 = {store};

}  // namespace tfq::cpu

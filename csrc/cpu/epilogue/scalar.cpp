// Reference order of the epilogue's float operations; the vector levels follow it exactly.
#include <cmath>

#include "common/quant.h"
#include "cpu/epilogue/epilogue.h"
#include "cpu/norm_act/activation.h"
#include "cpu/vector_scalar.h"

namespace tfq::cpu {
namespace {

float load(const void* data, DType dtype, int64_t index) {
  return dtype == DType::kFloat32 ? static_cast<const float*>(data)[index]
                                  : bf16_to_float(static_cast<const uint16_t*>(data)[index]);
}

void store(const EpilogueBlock& block, const Epilogue& e) {
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t row = block.row + i;
    const int64_t group = row / e.rows_per_group;
    const float* input = e.input.data + group * e.input.stride;
    const float* temporal = temporal_row(e, row / e.rows_per_sample);
    const float* requant = e.requant.data ? e.requant.data + group * e.requant.stride : nullptr;
    const int32_t zero_point = static_cast<int32_t>(input[2]);
    for (int64_t j = 0; j < block.columns; ++j) {
      const int64_t c = block.column + j;
      const int64_t index = row * block.n + c;
      const int32_t sum = block.acc[i * block.acc_stride + j] - zero_point * e.weight_sum[c];
      const float scale = input[0] * e.weight_scale[c];
      float offset = e.bias ? e.bias[c] : 0.0f;
      if (temporal) offset = offset + temporal[c];
      float y = std::fma(static_cast<float>(sum), scale, offset);
      if (e.residual) y = y + load(e.residual, e.residual_dtype, index);
      if (e.activation == Activation::kSilu) silu<VectorScalar>(y);
      uint8_t* quantized = e.quantized_out;
      if (e.out_dtype == DType::kFloat32) {
        static_cast<float*>(e.out)[index] = y;
      } else if (e.out_dtype == DType::kBFloat16) {
        static_cast<uint16_t*>(e.out)[index] = float_to_bf16(y);
      } else {
        quantized = static_cast<uint8_t*>(e.out);
      }
      if (quantized) quantized[index] = quantize_value(y, requant[1], requant[2]);
    }
  }
}

}  // namespace

extern const epilogue_kernel epilogue_scalar;
const epilogue_kernel epilogue_scalar = {store};

}  // namespace tfq::cpu

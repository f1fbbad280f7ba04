// Packed weights as dense floats, for layers whose activations stay float.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

struct dequantize_weight_kernel {
  // Of one block of a panel, 64 values of k of 16 columns in the int8 layout, the first `count`
  // values of the first `columns` columns: out[j * out_stride + i] = w * scale[j], float32 or
  // bfloat16.
  void (*block)(const int8_t* packed, int64_t columns, int64_t count, const float* scale,
                DType dtype, void* out, int64_t out_stride);
};

// out (n, k) = integers of the packed weight * scale.
void dequantize_weight(const DequantizeWeightArgs& args);

}  // namespace tfq::cpu

// Quantisation of float32 or bfloat16 values to uint8, and the ranges dynamic quantisation needs.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

struct quantize_kernel {
  // out[i] = quantize_value(x[i], r, z) for n values.
  void (*quantize)(const void* x, DType dtype, int64_t n, float r, float z, uint8_t* out);
  // Widens range (low, high) to the smallest and the largest of n values and 0. NaN is ignored.
  void (*range)(const void* x, DType dtype, int64_t n, float* range);
};

// Static parameters, or with dynamic_qparams those of each group's own range.
void quantize(const QuantizeArgs& args);

}  // namespace tfq::cpu

// Rows of the table of temporal features.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

struct temporal_gather_kernel {
  // out[i] = f32(f32(q[i] - z) * s) for n values.
  void (*dequantize)(const uint8_t* q, int64_t n, float s, float z, float* out);
};

// out[i] = table[rows[i]]. Throws std::invalid_argument, before writing anything, when a row is not
// in the table.
void temporal_gather(const TemporalGatherArgs& args);

// The same of a quantised table; throws also when the offsets do not rise from 0 to the width.
void temporal_gather_dequantize(const TemporalDequantizeArgs& args);

}  // namespace tfq::cpu

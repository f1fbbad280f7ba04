// The loop LayerNorm and GEGLU share: a few rows of floats are computed into L1, then quantised.
#pragma once

#include <functional>

#include "common/api.h"

namespace tfq::cpu {

struct RowQuantization {
  QParams qparams;  // one row of parameters for rows_per_group rows, when dynamic_qparams is null
  int64_t rows_per_group;
  float* dynamic_qparams;  // (rows, 3) or null
  uint8_t* out;            // (rows, channels)
};

// compute(row, count, y) fills y (count, channels) for count <= kRowBatch rows from `row` on;
// batches of rows are spread over threads.
void quantize_rows(int64_t rows, int64_t channels, const RowQuantization& quantization,
                   const std::function<void(int64_t, int64_t, float*)>& compute);

}  // namespace tfq::cpu

// out[i] = table[rows[i]], from a float32 table or from a uint8 one with a scale and a zero-point
// per row and feature. A row outside the table gives NaN: a kernel cannot raise.
#pragma once

#include "cuda/cuda.h"
#include "cuda/ptx.cuh"

namespace tfq::cuda {

constexpr int kGatherThreads = 256;

struct GatherLaunch {
  const float* table;          // (table_rows, width), or null:
  QuantizedTable quantized;    // (table_rows, width)
  int64_t table_rows;
  int32_t width;
  const int64_t* rows;  // (count)
  float* out;           // (count, width)
};

// grid = (width / kGatherThreads, count)
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kGatherThreads, 2)
    temporal_gather_rows(TFQ_GRID_CONSTANT const GatherLaunch args) {
  const int column = static_cast<int>(simt::block_index().x) * kGatherThreads + simt::thread_index();
  const int64_t i = simt::block_index().y;
  if (column >= args.width) return;
  const int64_t row = args.rows[i];
  constexpr uint32_t kNan = 0x7fc00000u;
  float value = ptx::bits_to_float(kNan);
  if (row >= 0 && row < args.table_rows) {
    if (args.table) {
      value = args.table[row * args.width + column];
    } else {
      const QuantizedTable& t = args.quantized;
      const float* parameters = t.parameters + 2 * (row * t.features + t.feature_of_column[column]);
      value = (static_cast<float>(t.table[row * args.width + column]) - parameters[1]) *
              parameters[0];
    }
  }
  args.out[i * args.width + column] = value;
}

}  // namespace tfq::cuda

// Rows of a temporal table by their index in device memory: of a float32 table, or of a uint8 one with
// a scale and a zero-point per row and feature. A row outside the table gives NaN: a kernel cannot
// raise. A thread writes one column of one row.
#pragma once

#include "common/api.h"
#include "cuda/ptx.cuh"

namespace tfq::cuda {

constexpr int kGatherThreads = 256;

// f(row of the table, column, index in the output) for the column of a thread; f makes the value.
// grid = (width / kGatherThreads, count)
template <typename Args, typename F>
TFQ_DEVICE void gather_column(const Args& args, const F& f) {
  const int64_t column =
      int64_t{simt::block_index().x} * kGatherThreads + simt::thread_index();
  const int64_t i = simt::block_index().y;
  if (column >= args.width) return;
  const int64_t row = args.rows[i];
  const bool exists =
      (row >= 0 && row < args.table_rows) || simt::fault(simt::kFaultRowUnchecked);
  args.out[i * args.width + column] = exists ? f(row, column) : ptx::quiet_nan();
}

TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kGatherThreads, 2)
    temporal_gather_rows(TFQ_GRID_CONSTANT const TemporalGatherArgs args) {
  ptx::begin_kernel();
  gather_column(args, [&](int64_t row, int64_t column) {
    return args.table[row * args.width + column];
  });
}

// The feature a column belongs to: the last whose offset is not beyond it.
TFQ_DEVICE int64_t feature_of(const TemporalDequantizeArgs& args, int64_t column) {
  int64_t low = 0, high = args.features;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (args.offsets[middle] <= column) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kGatherThreads, 2)
    temporal_gather_dequantize_rows(TFQ_GRID_CONSTANT const TemporalDequantizeArgs args) {
  ptx::begin_kernel();
  gather_column(args, [&](int64_t row, int64_t column) {
    const float* qparams = args.qparams + 2 * (row * args.features + feature_of(args, column));
    const auto q = static_cast<float>(args.table[row * args.width + column]);
    return (q - qparams[1]) * qparams[0];
  });
}

}  // namespace tfq::cuda

// Scale, bias, temporal row, residual and store for a block of int32 sums (struct Epilogue in
// api.h).
#pragma once

#include "common/api.h"

namespace tfq::cpu {
namespace {

// Row of the temporal table that an output row's sample reads, or null.
inline const float* temporal_row(const Epilogue& e, int64_t sample) {
  if (!e.temporal) return nullptr;
  return e.temporal + (e.temporal_rows ? e.temporal_rows[sample] : sample) * e.temporal_stride;
}

}  // namespace

// One block of the output: rows [row, row + rows) and columns [column, column + columns).
struct EpilogueBlock {
  const int32_t* acc;  // (rows, columns) sums, readable up to a multiple of 16 columns
  int64_t acc_stride;  // int32 elements between rows
  int64_t row, rows;
  int64_t column, columns;  // columns <= kMaxEpilogueColumns
  int64_t n;                // row length of out and residual
};
constexpr int64_t kMaxEpilogueColumns = 64;

struct epilogue_kernel {
  void (*store)(const EpilogueBlock& block, const Epilogue& epilogue);
};

}  // namespace tfq::cpu

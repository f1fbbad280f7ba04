// Attention whose two products are integer: uint8 query x int8 key, uint8 weights x int8 value.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

// Lanes of a row's running maximum: every level keeps those of the columns j % 16.
constexpr int64_t kMaxLanes = 16;

// What turns the sums of a column (a token of the key) into logits. Columns that only pad a block
// have scale 0 and offset -infinity.
struct KeyColumns {
  const float* sum;     // sum over the channels of the int8 key
  const float* scale;   // of the int8 key
  const float* offset;  // 0 or -infinity
};

// Some rows of a block of sums, which become logits in place.
struct LogitBlock {
  int32_t* acc;             // (rows, stride)
  int64_t rows, stride;     // int32 elements between rows
  int64_t columns;          // a multiple of 16
  const float* zero_point;  // (rows) of the query
  KeyColumns key;
  float* largest;  // (rows, kMaxLanes), raised to the logits
};

// The logits of a row, in blocks of `block_columns` of them that are `block_stride` apart.
struct LogitRow {
  const float* u;
  const float* largest;  // (kMaxLanes)
  int64_t columns;       // of all blocks together, a multiple of 16, as block_columns is
  int64_t block_columns, block_stride;
};

struct attention_s8_kernel {
  // smallest[c] = min(smallest[c], -|x[c]|) for n channels; a NaN is passed over.
  void (*magnitudes)(const void* x, DType dtype, int64_t n, float* smallest);
  // out[c] = quantize_value(x[c], r[c], 128) for n channels.
  void (*quantize_channels)(const void* x, DType dtype, int64_t n, const float* r, uint8_t* out);
  // acc becomes u = fma(fma(-z, sum, f32(acc)), scale, offset).
  void (*logits)(const LogitBlock& block);
  // p[j] = rne(255 * 2^((u[j] - max(largest)) * c)) and the sum of p.
  int64_t (*softmax)(const LogitRow& row, float c, uint8_t* p);
  // out[c] = f32(acc[c]) * (scale[c] / sum) for n channels; acc and scale are readable up to a
  // multiple of 16.
  void (*store)(const int32_t* acc, int64_t n, const float* scale, float sum, DType dtype,
                void* out);
};

void attention_s8(const AttentionArgs& args);

}  // namespace tfq::cpu

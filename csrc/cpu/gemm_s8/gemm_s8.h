// uint8 x int8 -> int32 matrix product with packed weights, and the block kernels under it.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

// One block of sums: acc[i][j] = sum over k of a[i][k] * b[j][k].
struct GemmBlock {
  const uint8_t* a;     // rows x (4 * quads) bytes
  int64_t lda;          // bytes between rows
  int64_t rows;         // 1 .. kernel.rows
  const int8_t* b;      // first packed panel
  int64_t panel_bytes;  // bytes between panels
  int64_t panels;       // 1 .. kernel.columns / 16
  int64_t quads;        // quads of k: 4 * quads is a multiple of kernel.k_step
  int32_t* acc;         // (kernel.rows, kernel.columns), 64-byte aligned
};

struct gemm_s8_kernel {
  int64_t rows, columns;  // largest block; acc rows are `columns` int32 apart
  int64_t row_step;       // `a` may be read up to the next multiple of row_step rows
  int64_t k_step;         // a divisor of 64
  void (*begin)();        // before and after the blocks one thread computes; may be null
  void (*end)();
  void (*block)(const GemmBlock&);
  void (*block_s4)(const GemmBlock&);  // the same where b is known to lie in [-15, 15]
};

// Reads out[i], for i in [0, rows), the row_first + i-th row of the left operand, padded
// to a multiple of 64 bytes, into `out`.
struct RowSource {
  const uint8_t*
      direct;  // when not null: rows are `direct + row * stride`, readable without a copy
  int64_t stride;
  void (*copy)(const void* context, int64_t row_first, int64_t rows, uint8_t* out,
               int64_t out_stride);
  const void* context;
};

// The loop nest shared by GEMM and convolution: blocks of rows, gathered once, times blocks of
// columns.
void run_gemm(const RowSource& source, int64_t m, int64_t n, int64_t k, const PackedWeight& weight,
              const Epilogue& epilogue);

// out (m, n) = x (m, k) * weight^T with the fused epilogue.
void gemm_s8(const GemmArgs& args);

// packed <- weight (n, k) row-major int8; weight_sum[n] <- sum over k.
void pack_weight(const int8_t* weight, int64_t n, int64_t k, int8_t* packed, int32_t* weight_sum);

// weight (n, k) <- packed.
void unpack_weight(const int8_t* packed, int64_t n, int64_t k, int8_t* weight);

// packed <- q (n, k) row-major, 4 bits a value; weight_sum[n] <- sum over k of q - zero_point[n].
void pack_weight_s4(const uint8_t* q, const uint8_t* zero_point, int64_t n, int64_t k,
                    uint8_t* packed, int32_t* weight_sum);

// q (n, k) <- packed.
void unpack_weight_s4(const uint8_t* packed, int64_t n, int64_t k, uint8_t* q);

}  // namespace tfq::cpu

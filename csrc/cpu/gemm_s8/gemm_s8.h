// uint8 x int8 -> int32 matrix product with packed weights, and the block kernels under it.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

// One block of sums: acc[i][j] = sum over k of a[i][k] * b[j][k]. Beyond the columns, up to a
// multiple of 16, anything may be stored.
struct GemmBlock {
  const uint8_t* a;     // rows x (4 * quads) bytes
  int64_t lda;          // bytes between rows
  int64_t rows;         // 1 .. kernel.rows
  const int8_t* b;      // first packed panel
  int64_t panel_bytes;  // bytes between panels
  int64_t columns;      // 1 .. kernel.columns
  int64_t quads;        // quads of k: 4 * quads is a multiple of kernel.k_step
  int32_t* acc;         // (kernel.rows, kernel.columns), 64-byte aligned
};

// The same of rows that lie in pieces: the quads of row i are strip_quads at rows[i], as many
// strip_stride bytes further on, and so on, `strips` times. What an image holds below a kernel.
struct StripBlock {
  const uint8_t* const* rows;  // (row_count)
  int64_t row_count;           // 1 .. kernel.rows
  int64_t strips, strip_stride, strip_quads;
  const int8_t* b;
  int64_t panel_bytes, columns;
  int32_t* acc;
};

struct gemm_s8_kernel {
  int64_t rows, columns;  // largest block; acc rows are `columns` int32 apart
  int64_t row_step;       // `a` may be read up to the next multiple of row_step rows
  int64_t k_step;         // a divisor of 64
  void (*begin)();        // before and after the blocks one thread computes; may be null
  void (*end)();
  void (*block)(const GemmBlock&);
  void (*block_s4)(const GemmBlock&);      // the same where b is known to lie in [-15, 15]
  void (*strip_block)(const StripBlock&);  // may be null
};

// A left operand whose rows overlap in memory, so that they are copied as one slab and read from
// there.
struct StripSource {
  int64_t strips, strip_stride, strip_quads;
  int64_t row_bytes;  // of a slab, about, for each row of a large one
  // Bytes of the slab of rows [row_first, row_first + rows).
  int64_t (*slab_bytes)(const void* context, int64_t row_first, int64_t rows);
  // Fills it, and addresses[i] with that of the row_first + i-th row.
  void (*copy)(const void* context, int64_t row_first, int64_t rows, uint8_t* slab,
               const uint8_t** addresses);
};

// Where the rows of the left operand come from.
struct RowSource {
  // When not null: row i is `direct + i * stride`, readable without a copy.
  const uint8_t* direct;
  int64_t stride;
  // Copies row row_first + i, for i in [0, rows), padded to a multiple of 64 bytes, to
  // out + i * out_stride.
  void (*copy)(const void* context, int64_t row_first, int64_t rows, uint8_t* out,
               int64_t out_stride);
  const StripSource* strips;  // used instead of `copy` by kernels that can, when not null
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

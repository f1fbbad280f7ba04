// Descriptions of tensors in global memory for Hopper's copy engine (TMA); free of CUDA headers.
#pragma once

#include <cstdint>

namespace tfq::cuda {

// As cuda.h's CUtensorMap: opaque, a kernel argument.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

// How shared memory is permuted: 16-byte chunks within rows of that many bytes.
enum class Swizzle : int { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

// A matrix (rows, row_bytes) of bytes, of which a copy takes (box_rows, box_bytes); what lies outside
// the matrix is zero. `base` and row_bytes are multiples of 16, box_rows at most 256, box_bytes at
// most the swizzle's. Throws CudaError with CUDA's code if the driver refuses.
TensorMap matrix_map(const void* base, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                     Swizzle swizzle);

}  // namespace tfq::cuda

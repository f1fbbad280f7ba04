// Global to shared memory: rows of kBlockK bytes, 16 bytes a copy.
//
// A row is four chunks of 16 bytes. Chunk c of row r lies at chunk position c ^ (r / 2 % 4): eight
// neighbouring rows, read by one phase of ldmatrix at the same logical chunk, then lie in different
// banks.
#pragma once

#include "cuda/product_args.h"
#include "cuda/ptx.cuh"

namespace tfq::cuda {

constexpr int kChunkBytes = 16;
constexpr int kRowChunks = kBlockK / kChunkBytes;

TFQ_DEVICE int swizzle(int row) { return simt::fault(simt::kFaultNoSwizzle) ? 0 : row / 2 % 4; }

TFQ_DEVICE uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kBlockK + (chunk ^ swizzle(row)) * kChunkBytes);
}

// Which chunk of which rows a thread copies: the same column of chunks of every Threads / 4-th row.
template <int Rows, int Threads>
struct ThreadRows {
  static constexpr int kRowStep = Threads / kRowChunks;
  static constexpr int kCount = (Rows + kRowStep - 1) / kRowStep;

  static TFQ_DEVICE int chunk() { return simt::thread_index() % kRowChunks; }
  static TFQ_DEVICE int row(int i) { return simt::thread_index() / kRowChunks + i * kRowStep; }
  static TFQ_DEVICE bool exists(int i) {
    return Rows % kRowStep == 0 || i < kCount - 1 || row(i) < Rows;
  }
};

// Rows [first_row, first_row + Rows) of a dense matrix (rows, depth); zeros outside.
template <int Rows, int Threads>
class MatrixLoader {
  using Mine = ThreadRows<Rows, Threads>;

 public:
  TFQ_DEVICE MatrixLoader(const void* matrix, int first_row, int rows, int depth)
      : base_(static_cast<const uint8_t*>(matrix)),
        first_row_(first_row),
        rows_(simt::fault(simt::kFaultLoadBeyondRows) ? rows + 1 : rows),
        depth_(depth) {}

  // Queues k-block `block` into the stage whose rows begin at `stage`.
  TFQ_DEVICE void load(int block, uint32_t stage) const {
    const int k = block * kBlockK + Mine::chunk() * kChunkBytes;
#pragma unroll
    for (int i = 0; i < Mine::kCount; ++i) {
      if (!Mine::exists(i)) continue;
      const int row = first_row_ + Mine::row(i);
      const bool valid = row < rows_ && k < depth_;
      const uint8_t* source = base_ + (valid ? static_cast<int64_t>(row) * depth_ + k : 0);
      ptx::copy_async(stage + chunk_offset(Mine::row(i), Mine::chunk()), source, valid);
    }
  }

 private:
  const uint8_t* base_;
  int first_row_, rows_, depth_;
};

}  // namespace tfq::cuda

// What a TensorMap is in the host build, and the copy it describes.
#pragma once

#include "cuda/simt.h"
#include "cuda/tensor_map.h"
#include "fragments.h"

namespace tfq::simt {

struct MatrixMap {
  const unsigned char* base;
  int64_t rows, row_bytes;
  int box_rows, box_bytes;  // box_bytes: also the swizzle
};

MatrixMap fields_of(const cuda::TensorMap& map);

// The box at (row, column) to shared memory, zeros outside the matrix.
void copy_box(const MatrixMap& map, uint32_t target, int64_t row, int64_t column);

}  // namespace tfq::simt

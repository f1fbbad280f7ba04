// What a TensorMap is in the host build, and the copy it describes.
#pragma once

#include <cstring>

#include "cuda/simt.h"
#include "cuda/tensor_map.h"
#include "fragments.h"

namespace tfq::simt {

struct MatrixMap {
  const unsigned char* base;
  int64_t rows, row_bytes;
  int box_rows, box_bytes;  // box_bytes: also the swizzle
};

struct ImageMap {
  const unsigned char* base;
  int32_t batch, height, width, channels;
  int32_t upper_y, upper_x, lower_y, lower_x;  // corners of the first taps, upper ones inclusive
  int32_t stride_h, stride_w;
  int32_t box_rows, box_bytes;  // box_bytes: also the swizzle
};

template <typename Fields>
Fields fields_of(const cuda::TensorMap& map) {
  Fields fields;
  static_assert(sizeof fields <= sizeof map);
  std::memcpy(&fields, &map, sizeof fields);
  return fields;
}

// The box at (row, column) to shared memory of block `rank`, zeros outside the matrix.
void copy_box(const MatrixMap& map, int rank, uint32_t target, int64_t row, int64_t column);

// Channels of a tap of the outputs from (image, y, x) on, zeros outside the image.
void copy_taps(const ImageMap& map, int rank, uint32_t target, int image, int y, int x, int tap_y,
               int tap_x, int channel);

}  // namespace tfq::simt

// csrc/cuda/tensor_map.cpp of the host build: a map is its arguments.
#include "tensor_map_host.h"

#include <cstring>

#include "cuda/device.h"

namespace tfq::cuda {
namespace {

constexpr int kMostRows = 256;

void require(bool ok, const char* what) {
  if (!ok) throw CudaError(std::string("tensor map: ") + what);
}

}  // namespace

TensorMap matrix_map(const void* base, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                     Swizzle swizzle) {
  require(reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_bytes % 16 == 0,
          "base and row_bytes must be multiples of 16");
  require(rows > 0 && row_bytes > 0, "the matrix is empty");
  require(box_rows > 0 && box_rows <= kMostRows, "box_rows must be in [1, 256]");
  require(swizzle != Swizzle::kNone && box_bytes == static_cast<int>(swizzle),
          "only boxes as wide as the swizzle are emulated");
  const simt::MatrixMap fields{static_cast<const unsigned char*>(base), rows, row_bytes, box_rows,
                               box_bytes};
  TensorMap map{};
  static_assert(sizeof fields <= sizeof map);
  std::memcpy(&map, &fields, sizeof fields);
  return map;
}

}  // namespace tfq::cuda

namespace tfq::simt {

MatrixMap fields_of(const cuda::TensorMap& map) {
  MatrixMap fields;
  std::memcpy(&fields, &map, sizeof fields);
  return fields;
}

void copy_box(const MatrixMap& map, uint32_t target, int64_t row, int64_t column) {
  for (int r = 0; r < map.box_rows; ++r) {
    for (int c = 0; c < map.box_bytes; c += 16) {
      const auto logical = target + static_cast<uint32_t>(r * map.box_bytes + c);
      unsigned char* to = shared_bytes(swizzled(logical, map.box_bytes), 16);
      const int64_t y = row + r, x = column + c;
      const bool inside = y >= 0 && y < map.rows && x >= 0 && x < map.row_bytes;
      if (inside) {
        std::memcpy(to, map.base + y * map.row_bytes + x, 16);
      } else {
        std::memset(to, 0, 16);
      }
    }
  }
}

}  // namespace tfq::simt

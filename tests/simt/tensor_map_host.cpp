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

void require_box(const void* base, int64_t row_bytes, int box_rows, int box_bytes,
                 Swizzle swizzle) {
  require(reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_bytes % 16 == 0,
          "base and row_bytes must be multiples of 16");
  require(row_bytes > 0, "the tensor is empty");
  require(box_rows > 0 && box_rows <= kMostRows, "box_rows must be in [1, 256]");
  require(swizzle != Swizzle::kNone && box_bytes == static_cast<int>(swizzle),
          "only boxes as wide as the swizzle are emulated");
}

template <typename Fields>
TensorMap map_of(const Fields& fields) {
  TensorMap map{};
  static_assert(sizeof fields <= sizeof map);
  std::memcpy(&map, &fields, sizeof fields);
  return map;
}

}  // namespace

TensorMap matrix_map(const void* base, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                     Swizzle swizzle) {
  require_box(base, row_bytes, box_rows, box_bytes, swizzle);
  require(rows > 0, "the matrix is empty");
  return map_of(simt::MatrixMap{static_cast<const unsigned char*>(base), rows, row_bytes, box_rows,
                                box_bytes});
}

TensorMap image_map(const void* base, int64_t batch, int64_t height, int64_t width,
                    int64_t channels, const TapOrigins& taps, int box_rows, int box_bytes,
                    Swizzle swizzle) {
  require_box(base, channels, box_rows, box_bytes, swizzle);
  require(im2col_fits(height, width, taps), "the corners or the strides are too large");
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  return map_of(simt::ImageMap{
      static_cast<const unsigned char*>(base), narrow(batch), narrow(height), narrow(width),
      narrow(channels),
      narrow(height - 1 + upper_corner(height, taps.out_h, taps.stride_h, taps.pad_top)),
      narrow(width - 1 + upper_corner(width, taps.out_w, taps.stride_w, taps.pad_left)),
      -taps.pad_top, -taps.pad_left, taps.stride_h, taps.stride_w, box_rows, box_bytes});
}

}  // namespace tfq::cuda

namespace tfq::simt {
namespace {

// 16 bytes of row `row` of a box, zeros for a null source.
void store_chunk(int rank, uint32_t target, int row, int column, int box_bytes,
                 const unsigned char* source) {
  const auto logical = target + static_cast<uint32_t>(row * box_bytes + column);
  unsigned char* to = shared_bytes_of(rank, swizzled(logical, box_bytes), 16);
  if (source) {
    std::memcpy(to, source, 16);
  } else {
    std::memset(to, 0, 16);
  }
}

}  // namespace

void copy_box(const MatrixMap& map, int rank, uint32_t target, int64_t row, int64_t column) {
  for (int r = 0; r < map.box_rows; ++r) {
    for (int c = 0; c < map.box_bytes; c += 16) {
      const int64_t y = row + r, x = column + c;
      const bool inside = y >= 0 && y < map.rows && x >= 0 && x < map.row_bytes;
      store_chunk(rank, target, r, c, map.box_bytes,
                  inside ? map.base + y * map.row_bytes + x : nullptr);
    }
  }
}

void copy_taps(const ImageMap& map, int rank, uint32_t target, int image, int y, int x, int tap_y,
               int tap_x, int channel) {
  for (int r = 0; r < map.box_rows; ++r) {
    const int source_y = y + tap_y, source_x = x + tap_x;
    const bool pixel = image < map.batch && source_y >= 0 && source_y < map.height &&
                       source_x >= 0 && source_x < map.width;
    const int64_t at = (int64_t{image} * map.height + source_y) * map.width + source_x;
    for (int c = 0; c < map.box_bytes; c += 16) {
      const bool inside = pixel && channel + c < map.channels;
      store_chunk(rank, target, r, c, map.box_bytes,
                  inside ? map.base + at * map.channels + channel + c : nullptr);
    }
    x += map.stride_w;
    if (x <= map.upper_x) continue;
    x = map.lower_x;
    y += map.stride_h;
    if (y <= map.upper_y) continue;
    y = map.lower_y;
    ++image;
  }
}

}  // namespace tfq::simt

// Descriptions of tensors in global memory for Hopper's copy engine (TMA); free of CUDA headers.
#pragma once

#include <cstdint>

namespace tfq::cuda {

// As cuda.h's CUtensorMap: opaque, a kernel argument. The copy engine asks for 64 bytes, CUDA 13's type
// for 128.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

// How shared memory is permuted: 16-byte chunks within rows of that many bytes.
enum class Swizzle : int { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

// A matrix (rows, row_bytes) of bytes, of which a copy takes (box_rows, box_bytes); what lies
// outside the matrix is zero. `base` and row_bytes are multiples of 16, box_rows at most 256,
// box_bytes at most the swizzle's. Throws CudaError with CUDA's code if the driver refuses.
TensorMap matrix_map(const void* base, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                     Swizzle swizzle);

// Where the taps of a convolution begin: output (y, x) reads from (y * stride_h - pad_top, x *
// stride_w - pad_left) on.
struct TapOrigins {
  int out_h, out_w, stride_h, stride_w, pad_top, pad_left;
};

// Images (batch, height, width, channels) of bytes, of which a copy takes `box_bytes` channels of
// one tap of `box_rows` outputs one after another, row by row and image by image; what lies outside
// is zero. `base` and channels are multiples of 16, and im2col_fits.
TensorMap image_map(const void* base, int64_t batch, int64_t height, int64_t width,
                    int64_t channels, const TapOrigins& taps, int box_rows, int box_bytes,
                    Swizzle swizzle);

// The image_map that a driver of this version (as cudaDriverGetVersion gives it) encoded for images of
// `bytes` in all. Drivers up to 13.1 set a bit for those below 128 KiB with which their copies go wrong.
constexpr TensorMap without_small_image_bug(TensorMap map, int driver, int64_t bytes) {
  constexpr int kLastDriverWithBug = 13010;
  constexpr int64_t kSmallImages = 131072;
  constexpr uint64_t kWrongBit = uint64_t{1} << 21;  // of the second word
  if (driver <= kLastDriverWithBug && bytes < kSmallImages) map.words[1] &= ~kWrongBit;
  return map;
}

// The last pixel a first tap is at, relative to the last of the image.
constexpr int64_t upper_corner(int64_t size, int out, int stride, int pad) {
  return int64_t{out - 1} * stride - pad - (size - 1);
}

// Whether the corners are within 128 pixels of the image's, and the strides at most 8.
constexpr bool im2col_fits(int64_t height, int64_t width, const TapOrigins& t) {
  constexpr int kMost = 127, kMostStride = 8;
  const int64_t y = upper_corner(height, t.out_h, t.stride_h, t.pad_top);
  const int64_t x = upper_corner(width, t.out_w, t.stride_w, t.pad_left);
  return t.pad_top <= kMost && t.pad_left <= kMost && y <= kMost && x <= kMost && y >= -kMost &&
         x >= -kMost && t.stride_h <= kMostStride && t.stride_w <= kMostStride;
}

}  // namespace tfq::cuda

// Row gather of the implicit GEMM: only the rows of one task exist at a time (in L2), never the
// whole im2col matrix. In NHWC the taps of one kernel row are contiguous, so an interior output
// position is kernel_h copies of kernel_w * channels bytes.
#include <cstring>

#include "common/math.h"
#include "cpu/conv2d_s8/conv2d_s8.h"

namespace tfq::cpu {
namespace {

struct Position {
  const uint8_t* image;
  int64_t top, left;  // of the receptive field, in (enlarged) input coordinates
  int pad_value;
};

// One kernel row of one output position; `out` has kernel_w * channels bytes.
void gather_kernel_row(const ConvGeometry& g, const Position& p, int64_t y, uint8_t* out) {
  const int64_t height = g.in_h * g.upsample, width = g.in_w * g.upsample;
  const auto bytes = [&](int64_t taps) { return static_cast<size_t>(taps * g.channels); };
  if (y < 0 || y >= height) {
    std::memset(out, p.pad_value, bytes(g.kernel_w));
    return;
  }
  const int64_t first = min_of(g.kernel_w, max_of(0, -p.left));
  const int64_t last = max_of(first, min_of(g.kernel_w, width - p.left));
  const uint8_t* row = p.image + y / g.upsample * g.in_w * g.channels;
  if (first > 0) std::memset(out, p.pad_value, bytes(first));
  if (g.upsample == 1) {
    std::memcpy(out + first * g.channels, row + (p.left + first) * g.channels, bytes(last - first));
  } else {
    for (int64_t tap = first; tap < last; ++tap)
      std::memcpy(out + tap * g.channels, row + (p.left + tap) / g.upsample * g.channels, bytes(1));
  }
  if (last < g.kernel_w)
    std::memset(out + last * g.channels, p.pad_value, bytes(g.kernel_w - last));
}

}  // namespace

void gather_rows(const void* context, int64_t row_first, int64_t rows, uint8_t* out,
                 int64_t out_stride) {
  const auto& args = *static_cast<const ConvArgs*>(context);
  const ConvGeometry& g = args.geometry;
  const QParams& qparams = args.epilogue.input;
  const int64_t k = g.kernel_h * g.kernel_w * g.channels;
  for (int64_t i = 0; i < rows; ++i, out += out_stride) {
    const int64_t row = row_first + i;
    const int64_t x = row % g.out_w;
    const int64_t y = row / g.out_w % g.out_h;
    const int64_t image = row / (g.out_w * g.out_h);
    const float* group = qparams.data + row / args.epilogue.rows_per_group * qparams.stride;
    const Position position{args.x + image * g.in_h * g.in_w * g.channels,
                            y * g.stride_h - g.pad_top, x * g.stride_w - g.pad_left,
                            static_cast<int>(group[2])};
    for (int64_t tap = 0; tap < g.kernel_h; ++tap)
      gather_kernel_row(g, position, position.top + tap, out + tap * g.kernel_w * g.channels);
    std::memset(out + k, 0, static_cast<size_t>(out_stride - k));
  }
}

}  // namespace tfq::cpu

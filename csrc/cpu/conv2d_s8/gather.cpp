// The left operand of the implicit GEMM, one task at a time (in L2): never the whole im2col matrix.
// In NHWC the taps of one kernel row are contiguous. A gathered row is kernel_h copies of them; a
// slab is the task's part of the padded (and enlarged) image, in which the rows lie as kernel_h
// strips each.
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

// `taps` neighbours in row y of the padded image, from p.left on; `out` has taps * channels bytes.
void copy_taps(const ConvGeometry& g, const Position& p, int64_t y, int64_t taps, uint8_t* out) {
  const int64_t height = g.in_h * g.upsample, width = g.in_w * g.upsample;
  const auto bytes = [&](int64_t count) { return static_cast<size_t>(count * g.channels); };
  if (y < 0 || y >= height) {
    std::memset(out, p.pad_value, bytes(taps));
    return;
  }
  const int64_t first = min_of(taps, max_of(0, -p.left));
  const int64_t last = max_of(first, min_of(taps, width - p.left));
  const uint8_t* row = p.image + y / g.upsample * g.in_w * g.channels;
  if (first > 0) std::memset(out, p.pad_value, bytes(first));
  if (g.upsample == 1) {
    std::memcpy(out + first * g.channels, row + (p.left + first) * g.channels, bytes(last - first));
  } else {
    for (int64_t tap = first; tap < last; ++tap)
      std::memcpy(out + tap * g.channels, row + (p.left + tap) / g.upsample * g.channels, bytes(1));
  }
  if (last < taps) std::memset(out + last * g.channels, p.pad_value, bytes(taps - last));
}

// The images of a task, from output row `top` (of all images) to `bottom`, and where each begins in
// the slab: the first from its own `top` on, the others whole.
struct Slab {
  const ConvGeometry& g;
  int64_t top, bottom, first_image;

  Slab(const ConvGeometry& geometry, int64_t row_first, int64_t rows)
      : g(geometry),
        top(row_first / g.out_w),
        bottom((row_first + rows - 1) / g.out_w),
        first_image(top / g.out_h) {}

  int64_t width() const { return (g.out_w - 1) * g.stride_w + g.kernel_w; }
  int64_t row_bytes() const { return width() * g.channels; }
  int64_t images() const { return bottom / g.out_h - first_image + 1; }
  // Output rows of an image in the slab.
  int64_t first_row(int64_t image) const { return image == first_image ? top % g.out_h : 0; }
  int64_t end_row(int64_t image) const {
    return image == bottom / g.out_h ? bottom % g.out_h + 1 : g.out_h;
  }
  // Rows of the padded image.
  int64_t height(int64_t image) const {
    return (end_row(image) - first_row(image) - 1) * g.stride_h + g.kernel_h;
  }
  // Slab row at which an image begins.
  int64_t begin(int64_t image) const {
    const int64_t whole = (g.out_h - 1) * g.stride_h + g.kernel_h;
    return image == first_image ? 0 : height(first_image) + (image - first_image - 1) * whole;
  }
  int64_t bytes() const {
    const int64_t last = bottom / g.out_h;
    return (begin(last) + height(last)) * row_bytes();
  }
};

const uint8_t* image_at(const ConvArgs& args, int64_t image) {
  return args.x + image * args.geometry.in_h * args.geometry.in_w * args.geometry.channels;
}

int zero_point_of(const ConvArgs& args, int64_t row) {
  const QParams& qparams = args.epilogue.input;
  return static_cast<int>(qparams.data[row / args.epilogue.rows_per_group * qparams.stride + 2]);
}

}  // namespace

void gather_rows(const void* context, int64_t row_first, int64_t rows, uint8_t* out,
                 int64_t out_stride) {
  const auto& args = *static_cast<const ConvArgs*>(context);
  const ConvGeometry& g = args.geometry;
  const int64_t k = g.kernel_h * g.kernel_w * g.channels;
  for (int64_t i = 0; i < rows; ++i, out += out_stride) {
    const int64_t row = row_first + i;
    const int64_t x = row % g.out_w;
    const int64_t y = row / g.out_w % g.out_h;
    const int64_t image = row / (g.out_w * g.out_h);
    const Position position{image_at(args, image), y * g.stride_h - g.pad_top,
                            x * g.stride_w - g.pad_left, zero_point_of(args, row)};
    for (int64_t tap = 0; tap < g.kernel_h; ++tap)
      copy_taps(g, position, position.top + tap, g.kernel_w, out + tap * g.kernel_w * g.channels);
    std::memset(out + k, 0, static_cast<size_t>(out_stride - k));
  }
}

int64_t slab_row_bytes(const ConvGeometry& g) { return Slab(g, 0, 1).row_bytes(); }

int64_t slab_bytes(const void* context, int64_t row_first, int64_t rows) {
  return Slab(static_cast<const ConvArgs*>(context)->geometry, row_first, rows).bytes();
}

void copy_slab(const void* context, int64_t row_first, int64_t rows, uint8_t* slab,
               const uint8_t** addresses) {
  const auto& args = *static_cast<const ConvArgs*>(context);
  const ConvGeometry& g = args.geometry;
  const Slab layout(g, row_first, rows);
  const int64_t row_bytes = layout.row_bytes();
  for (int64_t image = layout.first_image; image < layout.first_image + layout.images(); ++image) {
    const int64_t top = layout.first_row(image) * g.stride_h - g.pad_top;
    const Position position{image_at(args, image), top, -g.pad_left,
                            zero_point_of(args, image * g.out_h * g.out_w)};
    uint8_t* out = slab + layout.begin(image) * row_bytes;
    for (int64_t y = 0; y < layout.height(image); ++y, out += row_bytes)
      copy_taps(g, position, top + y, layout.width(), out);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = row_first + i, image = row / (g.out_w * g.out_h);
    const int64_t y = row / g.out_w % g.out_h - layout.first_row(image), x = row % g.out_w;
    addresses[i] =
        slab + (layout.begin(image) + y * g.stride_h) * row_bytes + x * g.stride_w * g.channels;
  }
}

}  // namespace tfq::cpu

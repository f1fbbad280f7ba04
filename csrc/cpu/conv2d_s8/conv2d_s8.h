// NHWC convolution as an implicit GEMM.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

// out (batch, out_h, out_w, out_channels); see ConvGeometry in api.h.
void conv2d_s8(const ConvArgs& args);

// Copies the k = (kernel_h, kernel_w, channels) input values under output positions
// [row_first, row_first + rows) to `out`, out_stride bytes apart (at least k; the rest is zeroed).
// `context` is a ConvArgs. Taps in the padding read as the zero-point of their image.
void gather_rows(const void* context, int64_t row_first, int64_t rows, uint8_t* out,
                 int64_t out_stride);

// The same without copying a value once per tap: the part of the padded (and enlarged) image under
// these positions, rows of slab_row_bytes. The strips of a position, kernel_w * channels bytes of
// each of kernel_h rows, begin at its address.
int64_t slab_row_bytes(const ConvGeometry& geometry);
int64_t slab_bytes(const void* context, int64_t row_first, int64_t rows);
void copy_slab(const void* context, int64_t row_first, int64_t rows, uint8_t* slab,
               const uint8_t** addresses);

}  // namespace tfq::cpu

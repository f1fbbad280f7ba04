// Normalisations and activations followed by quantisation. Each kernel writes float32 to a tile
// that stays in the L1 cache, from which quantize_kernel takes its range or stores it: the store
// and the reload use ports the arithmetic leaves idle, and quantisation exists once.
#pragma once

#include "common/api.h"
#include "common/group_norm.h"

namespace tfq::cpu {

struct group_norm_kernel {
  // Per channel over at most kChunkPixels pixels, `channels` apart, with the shift d = x - x[0][c]:
  // partial (3, partial_stride) = {x[0][c], sum of d, sum of d * d}, added in the order of the
  // pixels.
  void (*statistics)(const void* x, DType dtype, int64_t pixels, int64_t channels, float* partial,
                     int64_t partial_stride);
  // out[p * out_stride + c] = fma(x[p][c], scale[c], offset[c]).
  void (*affine)(const void* x, DType dtype, int64_t pixels, int64_t channels, const float* scale,
                 const float* offset, float* out, int64_t out_stride);
  // x[i] = x[i] * sigmoid(x[i]), in place.
  void (*silu)(float* x, int64_t n);
};

// Rows a row kernel is given at a time: the sums and the square root of one row are long dependency
// chains, those of four overlap, and four rows of a UNet's transformer still fit L1.
constexpr int64_t kRowBatch = 4;

struct layer_norm_kernel {
  // out[i][c] = (x[i][c] - mean) / sqrt(variance + eps) * weight[c] + bias[c] for 1 .. kRowBatch
  // dense rows; weight and bias may be null.
  void (*normalize)(const void* x, DType dtype, int64_t rows, int64_t channels, float eps,
                    const float* weight, const float* bias, float* out);
};

struct geglu_kernel {
  // out[c] = x[c] * gelu(x[channels + c]) for one row.
  void (*activate)(const void* x, DType dtype, int64_t channels, float* out);
};

void group_norm_silu_quantize(const GroupNormArgs& args);
void layer_norm_quantize(const LayerNormArgs& args);
void geglu_quantize(const GegluArgs& args);

}  // namespace tfq::cpu

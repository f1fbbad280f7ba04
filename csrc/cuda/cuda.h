// The CUDA half as the rest of the extension sees it; free of CUDA headers. Each function queues
// work on a stream: it neither waits nor allocates. A build without CUDA has the same functions
// (stubs.cpp), which throw.
#pragma once

#include <string>
#include <vector>

#include "common/api.h"
#include "cuda/gemm_config.h"
#include "cuda/product_args.h"

namespace tfq::cuda {

// Architectures this build has kernels for, e.g. {"80", "90"}; empty in a CPU-only build.
std::vector<std::string> built_archs();

struct Launch {
  int device;
  void* stream;  // cudaStream_t
};

struct ProductOptions {
  int32_t* workspace;  // zeros, of this stream alone: split-K's sums and counters
  int64_t workspace_size;
  int tile, splits;  // -1 and 0: chosen
  // conv2d_s8 alone: (kernel_h * kernel_w, n) sums of the weights over the channels, or null, which
  // keeps it from kernels that fill padding with zeros.
  const int32_t* tap_sums;
  // conv2d_s8 alone: memory of enlarged_bytes(), or null, which keeps images from being enlarged first.
  uint8_t* enlarged;
};

// Whether launches on Hopper may begin while what is before them on the stream ends (overlap.h); they may
// unless this is called. For measurements. Not to be changed while another thread launches.
void set_overlapping_launches(bool enabled);

// api.h's operations on device memory. Weights are in the layout of product_args.h.
void gemm_s8(const GemmArgs& args, const ProductOptions& options, const Launch& launch);
void conv2d_s8(const ConvArgs& args, const uint8_t* x2, int64_t channels2,
               const ProductOptions& options, const Launch& launch);

// Bytes of the enlarged image that a convolution of upsample 2 is faster with; 0: it needs none.
int64_t enlarged_bytes(const ConvGeometry& geometry, int64_t channels2, int device);

// float32 values of workspace that quantize and group_norm_silu_quantize need.
int64_t image_workspace(int64_t batch, int64_t pixels, int64_t channels);
void quantize(const QuantizeArgs& args, float* workspace, const Launch& launch);
void group_norm_silu_quantize(const GroupNormArgs& args, float* workspace, const Launch& launch);
void layer_norm_quantize(const LayerNormArgs& args, const Launch& launch);
void geglu_quantize(const GegluArgs& args, const Launch& launch);

// Of a weight in the CPU's layout, as it is kept.
void dequantize_weight(const DequantizeWeightArgs& args, const Launch& launch);

// softmax(query * key^T * scale) * value, the bits of the CPU's; `workspace` has the bytes of
// attention_args.h's AttentionSizes.
void attention_s8(const AttentionArgs& args, void* workspace, const Launch& launch);

// A row outside the table gives NaN.
void temporal_gather(const TemporalGatherArgs& args, const Launch& launch);
void temporal_gather_dequantize(const TemporalDequantizeArgs& args, const Launch& launch);

}  // namespace tfq::cuda

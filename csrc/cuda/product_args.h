// Arguments of the integer products as the kernels take them; free of CUDA headers.
#pragma once

#include "common/api.h"
#include "common/host_device.h"

namespace tfq::cuda {

// The device layout of a weight matrix: rows of packed_depth(k) bytes, zero padded, in a permuted
// order. Row 32 * g + 8 * j + 2 * t + e holds output channel 32 * g + 8 * t + 2 * j + e (j, t < 4;
// e < 2), so that the accumulators of a thread are eight neighbouring channels.
constexpr int kChannelGroup = 32;
constexpr int kBlockK = 64;
static TFQ_HOST_DEVICE constexpr int64_t packed_rows(int64_t n) {
  return (n + kChannelGroup - 1) / kChannelGroup * kChannelGroup;
}
static TFQ_HOST_DEVICE constexpr int64_t packed_depth(int64_t k) {
  return (k + kBlockK - 1) / kBlockK * kBlockK;
}

struct SplitK {
  int32_t count;
  int32_t* sums;      // (tiles, block_m * block_n), all zero before and after
  int32_t* counters;  // (tiles), all zero before and after
};

// Runs of kRunChannels output channels are read and written as vectors: n is a multiple of it (for
// GEGLU of twice it), and all operands but the quantisation parameters and the temporal table begin
// at multiples of 16 bytes.
constexpr int kRunChannels = 8;

struct GemmLaunch {
  const uint8_t* x;      // (m, k), 16-byte aligned, k a multiple of 16
  const int8_t* weight;  // (packed_rows(n), packed_depth(k))
  int32_t m, n, k;
  SplitK split;
  Epilogue epilogue;
};

struct ConvLaunch {
  const uint8_t* x;             // (batch, in_h, in_w, channels), 16-byte aligned
  const uint8_t* x2;            // (batch, in_h, in_w, channels2) or null: channels after those of x
  int32_t channels, channels2;  // multiples of 16
  int32_t in_h, in_w, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
  int32_t upsample_shift;     // 0, or 1 for nearest-neighbour enlargement
  int32_t images_per_qparam;  // images that share a row of epilogue.input
  GemmLaunch product;         // m = batch * out_h * out_w, k = kernel_h * kernel_w * channels
};

}  // namespace tfq::cuda

// Packed weights as dense floats, for layers whose activations stay float. They are read in the
// layout that is kept and saved (cpu/gemm_s8/packed_layout.h): a word of a quad is four values of k
// of one column, and with 4 bits the columns c and c + 8 share their words, low bits and high. A
// thread writes eight values of k of one column, from two words.
#pragma once

#include "cpu/gemm_s8/packed_layout.h"
#include "cuda/elements.cuh"

namespace tfq::cuda {

constexpr int kDequantizeThreads = 256;
constexpr int kDequantizeRun = 8;
constexpr int kColumnRuns = cpu::kBlockK / kDequantizeRun;   // of a column in a block of k
constexpr int kTileRuns = cpu::kPanelColumns * kColumnRuns;  // of a panel in a block of k

struct DequantizeLaunch {
  DequantizeWeightArgs weight;
  int32_t k_blocks;  // of a panel
  int32_t tiles;     // k_blocks * panels
};

// Values quad * 4 to quad * 4 + 3 of column `column` of the panel that holds row `row`; quads are
// counted from the first panel's.
TFQ_DEVICE void load_quad(const PackedWeight& weight, int64_t quad, int column, int64_t row,
                          float* out) {
  constexpr int kShared = cpu::kPanelColumns / 2;  // words of a 4-bit quad
  const auto* words = static_cast<const uint32_t*>(weight.data);
  if (weight.zero_point == nullptr) {
    const uint32_t word = words[quad * cpu::kPanelColumns + column];
#pragma unroll
    for (int i = 0; i < cpu::kQuad; ++i)
      out[i] = static_cast<float>(static_cast<int8_t>(word >> (8 * i)));
  } else {
    const uint32_t word = words[quad * kShared + column % kShared] >> (4 * (column / kShared));
    const int32_t zero_point = weight.zero_point[row];
#pragma unroll
    for (int i = 0; i < cpu::kQuad; ++i)
      out[i] = static_cast<float>(static_cast<int32_t>(word >> (8 * i) & 15) - zero_point);
  }
}

TFQ_DEVICE void store_value(void* target, DType dtype, int64_t index, float x) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(target)[index] = x;
  } else {
    const uint32_t pair = dtype == DType::kBFloat16 ? ptx::pack_bf16(x, x) : ptx::pack_fp16(x, x);
    static_cast<uint16_t*>(target)[index] = static_cast<uint16_t>(pair);
  }
}

// grid = tiles * kTileRuns / kDequantizeThreads
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kDequantizeThreads, 2)
    dequantize_weight_runs(TFQ_GRID_CONSTANT const DequantizeLaunch args) {
  ptx::begin_kernel();
  const DequantizeWeightArgs& w = args.weight;
  const int64_t index = int64_t{simt::block_index().x} * kDequantizeThreads + simt::thread_index();
  const auto tile = static_cast<int32_t>(index / kTileRuns);
  const int column = static_cast<int>(index % kTileRuns) / kColumnRuns;
  const int run = static_cast<int>(index % kColumnRuns);
  const int64_t row = tile / args.k_blocks * cpu::kPanelColumns + column;
  const int64_t first = tile % args.k_blocks * cpu::kBlockK + run * kDequantizeRun;
  if (tile >= args.tiles || first >= w.k) return;
  if (row >= w.n && !simt::fault(simt::kFaultStoreBeyondRows)) return;
  const int64_t quad = tile * (cpu::kBlockK / cpu::kQuad) + run * (kDequantizeRun / cpu::kQuad);
  const float scale = w.scale[row];
  float x[kDequantizeRun];
#pragma unroll
  for (int i = 0; i < kDequantizeRun; i += cpu::kQuad)
    load_quad(w.weight, quad + i / cpu::kQuad, column, row, x + i);
#pragma unroll
  for (float& value : x) value = value * scale;
  const int64_t target = row * w.k + first;
  if (w.k % kDequantizeRun == 0) {
    store_run(w.out, w.out_dtype, target, x);
    return;
  }
  const bool whole = w.k - first >= kDequantizeRun || simt::fault(simt::kFaultStoreBeyondDepth);
  const int count = whole ? kDequantizeRun : static_cast<int>(w.k - first);
#pragma unroll
  for (int i = 0; i < kDequantizeRun; ++i)
    if (i < count) store_value(w.out, w.out_dtype, target + i, x[i]);
}

}  // namespace tfq::cuda

// Quantisation of rows, of LayerNorm's and of GEGLU's results: a row is read once, kept in shared
// memory as float32, and written as uint8. One warp a row, or a block of four warps for long rows.
// Limited by memory bandwidth: 2 or 4 bytes in (4 or 8 for GEGLU) and 1 byte out a value.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"

namespace tfq::cuda {

constexpr int kRowThreads = 128;
constexpr int kRowWarps = kRowThreads / simt::kWarpSize;
constexpr int kRun = 8;  // values a thread handles at a time
constexpr uint32_t kReductionBytes = 16;

enum class RowOperation { kNone, kLayerNorm, kGeglu };

struct RowLaunch {
  const void* x;  // (rows, channels), or (rows, 2 * channels) for kGeglu
  DType x_dtype;
  int32_t rows, channels;  // channels: a multiple of kRun
  float eps;
  const float* weight;  // (channels) or null: kLayerNorm
  const float* bias;
  QParams qparams;
  int32_t rows_per_group;
  float* dynamic_qparams;  // (rows, 3) or null
  uint8_t* out;            // (rows, channels)
};

// The runs of a row a thread works on: f(first channel).
template <int Warps, typename F>
TFQ_DEVICE void for_runs(int channels, const F& f) {
  const int thread = simt::thread_index() % (Warps * simt::kWarpSize);
  for (int c = kRun * thread; c < channels; c += kRun * Warps * simt::kWarpSize) f(c);
}

// y becomes the normalised row. `channels` is 0 for threads without a row, who only take part in the
// reductions.
template <int Warps>
TFQ_DEVICE void layer_norm_row(const RowLaunch& args, int channels, float* y, float row_sum) {
  const float centre = reduce_row<SumOp, Warps>(row_sum, 0) / static_cast<float>(args.channels);
  float sum = 0.0f, square = 0.0f;
  for_runs<Warps>(channels, [&](int c) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const float d = y[c + i] - centre;
      sum = sum + d;
      square = ptx::fused_multiply_add(d, d, square);
    }
  });
  sum = reduce_row<SumOp, Warps>(sum, 0);
  square = reduce_row<SumOp, Warps>(square, 0);
  // The mean is centre + delta; x - centre is exact near it.
  const double delta = static_cast<double>(sum) / args.channels;
  const double variance = (static_cast<double>(square) - sum * delta) / args.channels;
  const double rstd = 1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + args.eps);
  const float scale = static_cast<float>(rstd), shift = static_cast<float>(-delta * rstd);
  for_runs<Warps>(channels, [&](int c) {
    float weight[kRun], bias[kRun];
    if (args.weight) load_run(args.weight + c, weight);
    if (args.bias) load_run(args.bias + c, bias);
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      y[c + i] = ptx::fused_multiply_add(
          ptx::fused_multiply_add(y[c + i] - centre, scale, shift),
          args.weight ? weight[i] : 1.0f, args.bias ? bias[i] : 0.0f);
  });
}

template <RowOperation Operation, int Warps>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kRowThreads, 4) row_quantize(TFQ_GRID_CONSTANT const RowLaunch args) {
  ptx::begin_kernel();
  constexpr int kRows = kRowWarps / Warps;
  const int local = simt::warp_index() / Warps;
  const int row = static_cast<int>(simt::block_index().x) * kRows + local;
  const bool exists = row < args.rows;
  const int channels = exists ? args.channels : 0;
  float* y = simt::shared_at<float>(kReductionBytes) + local * args.channels;

  float sum = 0.0f;
  for_runs<Warps>(channels, [&](int c) {
    float values[kRun];
    if constexpr (Operation == RowOperation::kGeglu) {
      const int64_t first = static_cast<int64_t>(row) * 2 * args.channels + c;
      float gate[kRun];
      load_run(args.x, args.x_dtype, first, values);
      load_run(args.x, args.x_dtype, first + args.channels, gate);
#pragma unroll
      for (int i = 0; i < kRun; ++i) values[i] = values[i] * gelu(gate[i]);
    } else {
      load_run(args.x, args.x_dtype, static_cast<int64_t>(row) * args.channels + c, values);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      sum = sum + values[i];
      y[c + i] = values[i];
    }
  });
  if constexpr (Operation == RowOperation::kLayerNorm) {
    layer_norm_row<Warps>(args, channels, y, sum);
  }

  float qparams[kQParamsWidth];
  if (args.dynamic_qparams) {
    float low = 0.0f, high = 0.0f;
    for_runs<Warps>(channels, [&](int c) {
      float values[kRun];
      load_run(y + c, values);
      widen(values, low, high);
    });
    low = reduce_row<MinOp, Warps>(low, 0);
    high = reduce_row<MaxOp, Warps>(high, 0);
    qparams_from_range(low, high, qparams);
    if (exists && simt::thread_index() % (Warps * simt::kWarpSize) == 0) {
      float* stored = args.dynamic_qparams + kQParamsWidth * static_cast<int64_t>(row);
#pragma unroll
      for (int i = 0; i < kQParamsWidth; ++i) stored[i] = qparams[i];
    }
  } else {
    const int group = exists ? row / args.rows_per_group : 0;
    const float* table = args.qparams.data + group * args.qparams.stride;
    qparams[1] = table[1];
    qparams[2] = table[2];
  }
  for_runs<Warps>(channels, [&](int c) {
    float values[kRun];
    load_run(y + c, values);
    store_quantized(args.out + static_cast<int64_t>(row) * args.channels + c, qparams[1],
                    qparams[2], values);
  });
}

}  // namespace tfq::cuda

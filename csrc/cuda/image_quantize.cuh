// Quantisation of images, plain or after GroupNorm and SiLU, from one source or two; NHWC.
//
// GroupNorm: partial sums per channel over chunks of 64 pixels, shifted by the chunk's first pixel,
// as on the CPU; one warp a group combines them in double; then every value is read again (from L2
// if the image fits), scaled, activated and quantised. Where the range is not known, one more pass
// finds it. A thread handles runs of 8 channels of a pixel.
#pragma once

#include "common/group_norm.h"
#include "cuda/activation.cuh"
#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"

namespace tfq::cuda {

constexpr int kImageThreads = 256;
constexpr int kImageRun = 8;
constexpr int kRunsPerThread = 4;

struct ImageLaunch {
  const void* x;   // (batch, pixels, channels)
  const void* x2;  // (batch, pixels, channels2) or null
  DType x_dtype;
  int32_t pixels, channels, channels2;  // channels: multiples of kImageRun
  int32_t num_groups;
  float eps;
  bool silu;
  const float* weight;  // as in GroupNormArgs
  const float* bias;
  int64_t affine_stride;
  QParams qparams;         // (batch, 3)
  float* dynamic_qparams;  // (batch, 3) or null
  float* partials;         // (batch, chunks, 3, channels + channels2)
  float* coefficients;     // (batch, 2, channels + channels2): scale, offset; null: plain
  int32_t* ranges;         // (batch, 2): ordered bits of the lowest and the highest value
  uint8_t* out;            // (batch, pixels, channels + channels2)

  TFQ_HOST_DEVICE int total() const { return channels + channels2; }
  TFQ_HOST_DEVICE int chunks() const { return (pixels + kChunkPixels - 1) / kChunkPixels; }
};

// Integers in the order of the floats; 0 is 0.
TFQ_DEVICE int32_t ordered_bits(float x) {
  const auto bits = static_cast<int32_t>(ptx::float_to_bits(x));
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}
TFQ_DEVICE float from_ordered_bits(int32_t bits) {
  return ptx::bits_to_float(static_cast<uint32_t>(bits < 0 ? bits ^ 0x7fffffff : bits));
}

// Channels [c, c + kImageRun) of a pixel of the concatenated sources.
TFQ_DEVICE void load_pixel(const ImageLaunch& args, int64_t image, int pixel, int c,
                           float (&x)[kImageRun]) {
  const int64_t row = image * args.pixels + pixel;
  if (c < args.channels) {
    load_run(args.x, args.x_dtype, row * args.channels + c, x);
  } else {
    load_run(args.x2, args.x_dtype, row * args.channels2 + c - args.channels, x);
  }
}

// grid = (items of an image / kImageThreads, batch); an item is a run of channels of a chunk.
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kImageThreads, 2)
    group_norm_statistics(TFQ_GRID_CONSTANT const ImageLaunch args) {
  ptx::begin_kernel();
  const int runs = args.total() / kImageRun;
  const int item = static_cast<int>(simt::block_index().x) * kImageThreads + simt::thread_index();
  const int64_t image = simt::block_index().y;
  const int chunk = item / runs, c = item % runs * kImageRun;
  if (chunk >= args.chunks()) return;
  const int begin = chunk * kChunkPixels;
  const int end = args.pixels < begin + kChunkPixels ? args.pixels : begin + kChunkPixels;
  float first[kImageRun], sum[kImageRun] = {}, square[kImageRun] = {};
  load_pixel(args, image, begin, c, first);
#pragma unroll 4
  for (int pixel = begin; pixel < end; ++pixel) {
    float x[kImageRun];
    load_pixel(args, image, pixel, c, x);
#pragma unroll
    for (int i = 0; i < kImageRun; ++i) {
      const float d = x[i] - first[i];
      sum[i] = sum[i] + d;
      square[i] = ptx::fused_multiply_add(d, d, square[i]);
    }
  }
  float* partial = args.partials + (image * args.chunks() + chunk) * 3 * args.total() + c;
  store_run(partial, DType::kFloat32, 0, first);
  store_run(partial, DType::kFloat32, args.total(), sum);
  store_run(partial, DType::kFloat32, 2 * args.total(), square);
}

// grid = (groups / warps of a block, batch). Partial sums are moved to one reference of the group.
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kImageThreads, 2)
    group_norm_coefficients(TFQ_GRID_CONSTANT const ImageLaunch args) {
  ptx::begin_kernel();
  constexpr int kWarps = kImageThreads / simt::kWarpSize;
  const int group_index = static_cast<int>(simt::block_index().x) * kWarps + simt::warp_index();
  const bool exists = group_index < args.num_groups;
  const int group = exists ? group_index : 0;
  const int64_t image = simt::block_index().y;
  const int total = args.total();
  const int width = total / args.num_groups, begin = group * width;
  const float* partials = args.partials + image * args.chunks() * 3 * total;
  const double reference = partials[begin];
  double sum = 0.0, square = 0.0;
  for (int i = simt::lane_index(); i < args.chunks() * width; i += simt::kWarpSize) {
    const int chunk = i / width, c = begin + i % width;
    const float* partial = partials + static_cast<int64_t>(chunk) * 3 * total + c;
    const int left = args.pixels - chunk * kChunkPixels;
    const double count = left < kChunkPixels ? left : kChunkPixels;
    const double shift = partial[0] - reference;
    const double shifted = partial[total] + count * shift;
    sum += shifted;
    square += partial[2 * total] + shift * (partial[total] + shifted);
  }
  sum = reduce_warp<SumOp>(sum);
  square = reduce_warp<SumOp>(square);
  const double values = static_cast<double>(args.pixels) * width;
  const double mean = reference + sum / values;
  const double variance = (square - sum * (sum / values)) / values;
  const double rstd = 1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + args.eps);
  const float* weight = args.weight + image * args.affine_stride;
  const float* bias = args.bias + image * args.affine_stride;
  float* coefficients = args.coefficients + image * 2 * total;
  for (int c = begin + simt::lane_index(); exists && c < begin + width; c += simt::kWarpSize) {
    const auto scale = static_cast<float>(weight[c] * rstd);
    coefficients[c] = scale;
    coefficients[total + c] = static_cast<float>(bias[c] - mean * scale);
  }
}

// grid = (1, batch)
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(32, 1) clear_ranges(TFQ_GRID_CONSTANT const ImageLaunch args) {
  ptx::begin_kernel();
  if (simt::thread_index() < 2) args.ranges[2 * simt::block_index().y + simt::thread_index()] = 0;
}

// f(channel of the image, offset in its output, values) for the runs of a thread.
template <typename F>
TFQ_DEVICE void for_image_runs(const ImageLaunch& args, const F& f) {
  const int64_t image = simt::block_index().y;
  const int runs = args.total() / kImageRun;
  const float* coefficients =
      args.coefficients ? args.coefficients + image * 2 * args.total() : nullptr;
#pragma unroll
  for (int r = 0; r < kRunsPerThread; ++r) {
    const int item = (static_cast<int>(simt::block_index().x) * kRunsPerThread + r) * kImageThreads +
                     simt::thread_index();
    const int pixel = item / runs, c = item % runs * kImageRun;
    if (pixel >= args.pixels) continue;
    float x[kImageRun];
    load_pixel(args, image, pixel, c, x);
    if (coefficients) {
      float scale[kImageRun], offset[kImageRun];
      load_run(coefficients + c, scale);
      load_run(coefficients + args.total() + c, offset);
#pragma unroll
      for (int i = 0; i < kImageRun; ++i) {
        x[i] = ptx::fused_multiply_add(x[i], scale[i], offset[i]);
        if (args.silu) x[i] = silu(x[i]);
      }
    }
    f((image * args.pixels + pixel) * args.total() + c, x);
  }
}

TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kImageThreads, 2)
    image_range(TFQ_GRID_CONSTANT const ImageLaunch args) {
  ptx::begin_kernel();
  float low = 0.0f, high = 0.0f;
  for_image_runs(args, [&](int64_t, const float(&x)[kImageRun]) { widen(x, low, high); });
  low = reduce_warp<MinOp>(low);
  high = reduce_warp<MaxOp>(high);
  if (simt::lane_index() == 0) {
    int32_t* range = args.ranges + 2 * simt::block_index().y;
    ptx::atomic_min(range, ordered_bits(low));
    ptx::atomic_max(range + 1, ordered_bits(high));
  }
}

TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kImageThreads, 2)
    image_quantize(TFQ_GRID_CONSTANT const ImageLaunch args) {
  ptx::begin_kernel();
  const int64_t image = simt::block_index().y;
  float qparams[kQParamsWidth];
  if (args.dynamic_qparams) {
    qparams_from_range(from_ordered_bits(args.ranges[2 * image]),
                       from_ordered_bits(args.ranges[2 * image + 1]), qparams);
    if (simt::block_index().x == 0 && simt::thread_index() == 0) {
#pragma unroll
      for (int i = 0; i < kQParamsWidth; ++i)
        args.dynamic_qparams[kQParamsWidth * image + i] = qparams[i];
    }
  } else {
    qparams[1] = args.qparams.data[image * args.qparams.stride + 1];
    qparams[2] = args.qparams.data[image * args.qparams.stride + 2];
  }
  for_image_runs(args, [&](int64_t offset, const float(&x)[kImageRun]) {
    store_quantized(args.out + offset, qparams[1], qparams[2], x);
  });
}

}  // namespace tfq::cuda

// Zero-padded 2-D convolution over NHWC as an implicit GEMM, for sm_90a: the product of the GEMM, with
// rows of A gathered by the copy engine.
//
// Depth is walked in units of 64 channels of one tap. Taps outside the image and channels beyond the last
// come as zeros; weights beyond the tap's channels meet such zeros. A missing tap should be the
// zero-point instead, so what its weights would add to z * weight_sum is taken out again, at the
// rows that miss one.
#pragma once

#include "cuda/main_loop_sm90.cuh"

namespace tfq::cuda {

struct TmaConvLaunch {
  TensorMap a, b;  // boxes (block_m, 64) of the image and (block_n / cluster, 64) of the weight
  const int32_t* tap_sums;  // (kernel_h * kernel_w, n): sums of the weights over the channels
  ConvLaunch conv;
};

constexpr int kConvUnit = 64;

TFQ_DEVICE int units_of_tap(const ConvLaunch& conv) {
  return (conv.channels + kConvUnit - 1) / kConvUnit;
}

// The first tap of output row `row`.
TFQ_DEVICE ptx::FirstTap first_tap(const ConvLaunch& conv, int row) {
  const int pixels = conv.out_h * conv.out_w;
  const int image = row / pixels;
  const int pixel = row - image * pixels;
  const int y = pixel / conv.out_w;
  return {image, y * conv.stride_h - conv.pad_top,
          (pixel - y * conv.out_w) * conv.stride_w - conv.pad_left};
}

template <typename Shape>
class ImageUnits {
 public:
  TFQ_DEVICE explicit ImageUnits(const TmaConvLaunch& args) : args_(args), weights_(args.b) {
    ptx::prefetch_map(args.a);
  }
  TFQ_DEVICE void begin(const TilePosition& tile) {
    first_ = first_tap(args_.conv, tile.row * Shape::kBlockM);
    weights_.begin(tile);
  }
  TFQ_DEVICE void load(int stage, int unit, int index, uint32_t barrier) const {
    const ConvLaunch& conv = args_.conv;
    const int per_tap = units_of_tap(conv);
    const int tap = index / per_tap;
    const int tap_y = tap / conv.kernel_w;
    // The unit that fills up the last stage: channels there are none of.
    const bool exists = tap_y < conv.kernel_h;
    const int channel = exists ? (index - tap * per_tap) * kConvUnit : per_tap * kConvUnit;
    const int y = exists ? tap_y : 0, x = exists ? tap - tap_y * conv.kernel_w : 0;
    const bool transposed = simt::fault(simt::kFaultTransposedTap);
    ptx::load_taps(Shape::unit_a(stage, unit), args_.a, barrier, first_, transposed ? x : y,
                   transposed ? y : x, channel);
    weights_.load(stage, unit, tap * conv.channels + channel, barrier);
  }

 private:
  const TmaConvLaunch& args_;
  WeightUnits<Shape> weights_;
  ptx::FirstTap first_{};
};

// Taps that output rows miss, and what their weights sum to.
class MissingTaps {
 public:
  TFQ_DEVICE explicit MissingTaps(const TmaConvLaunch& args) : args_(args) {}

  // Bit t for tap t.
  TFQ_DEVICE uint32_t missing(int row) const {
    const ConvLaunch& conv = args_.conv;
    if (simt::fault(simt::kFaultPaddingIsZero)) return 0;
    const ptx::FirstTap first = first_tap(conv, row);
    uint32_t mask = 0;
    for (int y = 0, tap = 0; y < conv.kernel_h; ++y)
      for (int x = 0; x < conv.kernel_w; ++x, ++tap) {
        const bool inside =
            static_cast<uint32_t>(first.y + y) < static_cast<uint32_t>(conv.in_h) &&
            static_cast<uint32_t>(first.x + x) < static_cast<uint32_t>(conv.in_w);
        if (!inside) mask |= 1u << tap;
      }
    return mask;
  }

  template <int Count>
  TFQ_DEVICE void add(uint32_t mask, int channel, int32_t (&sums)[Count]) const {
    for (int tap = 0; mask != 0; ++tap, mask >>= 1) {  // no shift by the 32 of a full mask
      if (!(mask & 1)) continue;
      uint32_t words[Count];
      load_words(args_.tap_sums + static_cast<int64_t>(tap) * args_.conv.product.n + channel, words);
#pragma unroll
      for (int i = 0; i < Count; ++i) sums[i] += static_cast<int32_t>(words[i]);
    }
  }

 private:
  const TmaConvLaunch& args_;
};

template <int TileIndex>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), 1)
    conv2d_s8_sm90(TFQ_GRID_CONSTANT const TmaConvLaunch args) {
  if constexpr (ptx::kHasWgmma) {
    using Shape = TileShapeSm90<TileIndex, Swizzle::k64>;
    static_assert(Shape::kUnitBytes == kConvUnit);
    constexpr int kUnits = kBlockKSm90 / kConvUnit;
    const int units = args.conv.kernel_h * args.conv.kernel_w * units_of_tap(args.conv);
    ImageUnits<Shape> loader(args);
    const int whole = simt::fault(simt::kFaultNoLastUnit) ? units : units + kUnits - 1;
    run_product<Shape, false>(args.conv.product, whole / kUnits, loader, MissingTaps(args));
  }
}

}  // namespace tfq::cuda

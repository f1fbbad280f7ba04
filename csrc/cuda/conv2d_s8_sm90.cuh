// Zero-padded 2-D convolution over NHWC as an implicit GEMM, for sm_90a: the product of the GEMM, with
// rows of A gathered by the copy engine.
//
// Depth is walked in units of 64 channels of one tap, or of 128 if that divides the channels. Taps
// outside the image and channels beyond the last come as zeros; weights beyond the tap's channels meet
// such zeros. A missing tap should be the zero-point instead, so what its weights would add to
// z * weight_sum is taken out again, at the rows that miss one.
#pragma once

#include "cuda/main_loop_sm90.cuh"

namespace tfq::cuda {

struct TmaConvLaunch {
  TensorMap a, b;  // boxes (block_m, unit) of the image and (block_n / cluster, unit) of the weight
  const int32_t* tap_sums;  // (kernel_h * kernel_w, n): sums of the weights over the channels
  ConvLaunch conv;
};

template <typename Shape>
TFQ_DEVICE int units_of_tap(const ConvLaunch& conv) {
  return (conv.channels + Shape::kUnitBytes - 1) / Shape::kUnitBytes;
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
  TFQ_DEVICE void begin(const TilePosition& tile, int unit) {
    const ConvLaunch& conv = args_.conv;
    first_ = first_tap(conv, tile.row * Shape::kBlockM);
    weights_.begin(tile);
    const int per_tap = units_of_tap<Shape>(conv);
    const int tap = unit / per_tap;
    channel_ = (unit - tap * per_tap) * Shape::kUnitBytes;
    depth_ = tap * conv.channels;
    tap_y_ = tap / conv.kernel_w;
    tap_x_ = tap - tap_y_ * conv.kernel_w;
  }
  // Without a division: one thread does this for all the products of the block.
  TFQ_DEVICE void load_next(int stage, int unit, uint32_t barrier) {
    const ConvLaunch& conv = args_.conv;
    // The unit that fills up the last stage: channels there are none of.
    const bool exists = tap_y_ < conv.kernel_h;
    const int y = exists ? tap_y_ : 0, x = exists ? tap_x_ : 0;
    const bool transposed = simt::fault(simt::kFaultTransposedTap);
    ptx::load_taps(Shape::unit_a(stage, unit), args_.a, barrier, first_, transposed ? x : y,
                   transposed ? y : x, exists ? channel_ : conv.channels);
    weights_.load(stage, unit, depth_ + channel_, barrier);
    channel_ += Shape::kUnitBytes;
    if (channel_ < conv.channels) return;
    channel_ = 0;
    depth_ += conv.channels;
    if (++tap_x_ < conv.kernel_w) return;
    tap_x_ = 0;
    ++tap_y_;
  }

 private:
  const TmaConvLaunch& args_;
  WeightUnits<Shape> weights_;
  ptx::FirstTap first_{};
  int tap_y_ = 0, tap_x_ = 0, channel_ = 0;  // of the next unit
  int depth_ = 0;                            // of its tap, in the weights
};

// Taps that output rows miss, and what their weights sum to.
class MissingTaps {
 public:
  static constexpr bool kExists = true;
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

template <int TileIndex, Swizzle kUnit>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), 1)
    conv2d_s8_sm90(TFQ_GRID_CONSTANT const TmaConvLaunch args) {
  if constexpr (ptx::kHasWgmma) {
    using Shape = TileShapeSm90<TileIndex, kUnit>;
    constexpr int kUnits = kBlockKSm90 / Shape::kUnitBytes;
    const int units = args.conv.kernel_h * args.conv.kernel_w * units_of_tap<Shape>(args.conv);
    ImageUnits<Shape> loader(args);
    const int whole = simt::fault(simt::kFaultNoLastUnit) ? units : units + kUnits - 1;
    run_product<Shape, false>(args.conv.product, whole / kUnits, loader, MissingTaps(args));
  }
}

}  // namespace tfq::cuda

#include "cuda/conv_config.h"

#include "common/check.h"
#include "common/conv_geometry.h"
#include "common/math.h"
#include "cuda/tensor_map.h"

namespace tfq::cuda {
namespace {

constexpr int64_t kChunkChannels = 16;  // one 16-byte copy lies in one tap of one source
constexpr int64_t kMaxPixels = int64_t{1} << 31;
constexpr int64_t kMaxExtent = int64_t{1} << 15;  // coordinates are held in 16 bits

const char* why_not_copied(const ConvGeometry& g, int64_t channels2, bool tap_sums) {
  constexpr int64_t kMostTaps = 32;
  if (is_pointwise(g)) return "";
  if (!tap_sums) return "needs the sums of the weights of each tap";
  if (channels2 > 0) return "has no second source";
  if (g.upsample != 1) return "enlarges no images";
  if (g.kernel_h * g.kernel_w > kMostTaps) return "has at most 32 taps";
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  const TapOrigins taps{narrow(g.out_h),    narrow(g.out_w),   narrow(g.stride_h),
                        narrow(g.stride_w), narrow(g.pad_top), narrow(g.pad_left)};
  if (!im2col_fits(g.in_h, g.in_w, taps)) return "has strides of at most 8 and padding below 128";
  return "";
}

}  // namespace

ConvGeometry enlarged(ConvGeometry geometry) {
  geometry.in_h *= geometry.upsample;
  geometry.in_w *= geometry.upsample;
  geometry.upsample = 1;
  return geometry;
}

ProductProblem conv_problem(const ConvGeometry& g, int64_t channels2, int64_t workspace,
                            bool tap_sums) {
  TFQ_CHECK(g.channels > 0 && g.channels % kChunkChannels == 0 && channels2 % kChunkChannels == 0,
            "conv2d_s8: CUDA kernels need channels that are multiples of ", kChunkChannels,
            ", got ", g.channels, " and ", channels2, declined_by_all_tiles());
  TFQ_CHECK(g.batch * g.in_h * g.in_w < kMaxPixels && g.batch * g.out_h * g.out_w < kMaxPixels,
            "conv2d_s8: CUDA kernels need fewer than 2^31 pixels, got ", g.batch, " x ", g.in_h,
            " x ", g.in_w, " in and ", g.batch, " x ", g.out_h, " x ", g.out_w, " out",
            declined_by_all_tiles());
  // The padding below and to the right is known from the output alone.
  const auto extent = [&g](int64_t in, int64_t out, int64_t stride, int64_t pad, int64_t kernel) {
    return max_of(g.upsample * in, (out - 1) * stride) + pad + kernel;
  };
  TFQ_CHECK(extent(g.in_h, g.out_h, g.stride_h, g.pad_top, g.kernel_h) < kMaxExtent &&
                extent(g.in_w, g.out_w, g.stride_w, g.pad_left, g.kernel_w) < kMaxExtent,
            "conv2d_s8: CUDA kernels need images smaller than ", kMaxExtent,
            " on a side, padding included, got ", g.in_h, " x ", g.in_w, " in and ", g.out_h, " x ",
            g.out_w, " out", declined_by_all_tiles());
  return {g.batch * g.out_h * g.out_w, g.out_channels,
          g.kernel_h * g.kernel_w * (g.channels + channels2), workspace,
          why_not_copied(g, channels2, tap_sums)};
}

}  // namespace tfq::cuda

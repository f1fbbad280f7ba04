#include "cuda/conv_config.h"

#include "common/check.h"

namespace tfq::cuda {
namespace {

constexpr int64_t kChunkChannels = 16;  // one 16-byte copy lies in one tap of one source
constexpr int64_t kMaxPixels = int64_t{1} << 31;
constexpr int64_t kMaxExtent = int64_t{1} << 15;  // coordinates are held in 16 bits

}  // namespace

ProductProblem conv_problem(const ConvGeometry& g, int64_t channels2, int64_t workspace) {
  TFQ_CHECK(g.channels > 0 && g.channels % kChunkChannels == 0 && channels2 % kChunkChannels == 0,
            "conv2d_s8: CUDA kernels need channels that are multiples of ", kChunkChannels,
            ", got ", g.channels, " and ", channels2, declined_by_all_tiles());
  TFQ_CHECK(g.batch * g.in_h * g.in_w < kMaxPixels && g.batch * g.out_h * g.out_w < kMaxPixels,
            "conv2d_s8: CUDA kernels need fewer than 2^31 pixels, got ", g.batch, " x ", g.in_h,
            " x ", g.in_w, " in and ", g.batch, " x ", g.out_h, " x ", g.out_w, " out",
            declined_by_all_tiles());
  TFQ_CHECK(g.upsample * g.in_h + g.pad_top + g.kernel_h < kMaxExtent &&
                g.upsample * g.in_w + g.pad_left + g.kernel_w < kMaxExtent,
            "conv2d_s8: CUDA kernels need images smaller than ", kMaxExtent, " on a side, got ",
            g.in_h, " x ", g.in_w, declined_by_all_tiles());
  // A matrix already where a pixel's channels are a row of A, all of them and in order.
  const bool matrix = g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 &&
                      g.out_h == g.in_h && g.out_w == g.in_w && g.pad_top == 0 && g.pad_left == 0 &&
                      g.upsample == 1 && channels2 == 0;
  return {g.batch * g.out_h * g.out_w, g.out_channels,
          g.kernel_h * g.kernel_w * (g.channels + channels2), workspace, !matrix};
}

}  // namespace tfq::cuda

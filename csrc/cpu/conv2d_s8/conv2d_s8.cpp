#include "cpu/conv2d_s8/conv2d_s8.h"

#include "common/conv_geometry.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/winograd_s16/winograd_s16.h"

namespace tfq::cpu {

void conv2d_s8(const ConvArgs& args) {
  const ConvGeometry& g = args.geometry;
  if (prefers_winograd(g, active_level())) return conv2d_winograd(args);
  const int64_t k = g.kernel_h * g.kernel_w * g.channels;
  const bool in_place = is_pointwise(g) && k % kBlockK == 0;
  const int64_t strip_bytes = g.kernel_w * g.channels;
  const StripSource strips{g.kernel_h,          slab_row_bytes(g),
                           strip_bytes / kQuad, g.channels * g.stride_h * g.stride_w,
                           slab_bytes,          copy_slab};
  const bool whole_quads = !in_place && strip_bytes % kQuad == 0;
  run_gemm({in_place ? args.x : nullptr, k, gather_rows, whole_quads ? &strips : nullptr, &args},
           g.batch * g.out_h * g.out_w, g.out_channels, k, args.weight, args.epilogue);
}

}  // namespace tfq::cpu

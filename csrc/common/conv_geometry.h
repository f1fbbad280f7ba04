// What kind of convolution a geometry is. Internal linkage: see api.h.
#pragma once

#include "common/api.h"

namespace tfq {

// Whether every output reads its own pixel alone: the image is the left operand of a GEMM.
static inline bool is_pointwise(const ConvGeometry& g) {
  return g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 &&
         g.out_h == g.in_h && g.out_w == g.in_w && g.pad_top == 0 && g.pad_left == 0 &&
         g.upsample == 1;
}

}  // namespace tfq

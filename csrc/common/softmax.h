// The numbers of attention's softmax (docs/numerics.md), which the CPU's kernels and CUDA's share.
// Internal linkage: see api.h.
#pragma once

#include "common/host_device.h"
#include "common/math.h"

namespace tfq {

// 255 * 2^r for |r| <= 1/2: minimax among those that are 255 at 0 (Lawson's algorithm), relative
// error 9.1e-8, and 1.7e-7 evaluated in float32; lowest power first.
constexpr float kExp2Coefficients[] = {255.0f,     176.75247f, 61.256718f,
                                       14.154371f, 2.4662356f, 0.33825055f};
// Below this 255 * 2^t rounds to 0 by far, and 2^t is still a normal number.
constexpr float kExp2Min = -126.0f;

// What a difference of logits in units of the query is multiplied by, to the base 2. Above 0, or
// -infinity times it would be NaN.
static TFQ_HOST_DEVICE inline float softmax_factor(float query_scale, float scale) {
  const float factor = query_scale * scale * kLog2E;
  if (factor < kSmallestNormal) return kSmallestNormal;
  return factor;
}

}  // namespace tfq

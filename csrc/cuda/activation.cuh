// SiLU and exact GELU in float32. DESIGN allows a step of difference to the reference after them.
#pragma once

#include "common/math.h"
#include "cuda/ptx.cuh"

namespace tfq::cuda {

// x / (1 + exp(-x)): two multi-function instructions. The clamp keeps -infinity from 0 * infinity;
// NaN passes.
TFQ_DEVICE float silu(float x) {
  constexpr float kLowest = -87.0f;
  const float clamped = x < kLowest ? kLowest : x;
  return clamped * ptx::reciprocal_approx(1.0f + ptx::exp2_approx(-clamped * kLog2E));
}

// x * normal_cdf(x); below -13 it is less than 1e-36.
TFQ_DEVICE float gelu(float x) {
  constexpr float kLowest = -13.0f;
  constexpr float kSqrtHalf = 0.707106781f;
  const float clamped = x < kLowest ? kLowest : x;
  return 0.5f * clamped * (1.0f + ptx::erf_approx(clamped * kSqrtHalf));
}

}  // namespace tfq::cuda

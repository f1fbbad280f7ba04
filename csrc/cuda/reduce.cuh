// Sums and ranges over the threads that share a row, in a fixed order.
#pragma once

#include "cuda/ptx.cuh"

namespace tfq::cuda {

struct SumOp {
  template <typename T>
  static TFQ_DEVICE T combine(T a, T b) {
    return a + b;
  }
};
struct MinOp {
  static TFQ_DEVICE float combine(float a, float b) { return b < a ? b : a; }
};
struct MaxOp {
  static TFQ_DEVICE float combine(float a, float b) { return b > a ? b : a; }
};

// Over Lanes neighbouring threads of a warp, a power of two.
template <typename Op, int Lanes, typename T>
TFQ_DEVICE T reduce_lanes(T value) {
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2)
    value = Op::combine(value, ptx::shuffle_xor(value, mask));
  return value;
}
template <typename Op, typename T>
TFQ_DEVICE T reduce_warp(T value) {
  return reduce_lanes<Op, simt::kWarpSize>(value);
}

// Over Warps neighbouring warps, which are the whole block if there are several. `scratch`: offset
// of Warps floats of shared memory.
template <typename Op, int Warps>
TFQ_DEVICE float reduce_row(float value, uint32_t scratch) {
  value = reduce_warp<Op>(value);
  if constexpr (Warps > 1) {
    float* values = simt::shared_at<float>(scratch);
    if (simt::lane_index() == 0) values[simt::warp_index()] = value;
    if (!simt::fault(simt::kFaultReduceWithoutBarrier)) simt::sync_block();
    value = values[0];
#pragma unroll
    for (int i = 1; i < Warps; ++i) value = Op::combine(value, values[i]);
    // Before the next reduction writes there.
    if (!simt::fault(simt::kFaultReduceOverwritten)) simt::sync_block();
  }
  return value;
}

// Widens [low, high] to the values; NaN counts as 0, which every range contains.
template <int Count>
TFQ_DEVICE void widen(const float (&x)[Count], float& low, float& high) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    low = MinOp::combine(low, x[i]);
    high = MaxOp::combine(high, x[i]);
  }
}

}  // namespace tfq::cuda

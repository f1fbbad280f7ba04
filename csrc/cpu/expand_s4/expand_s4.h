// 4-bit weights into the int8 layout the block kernels read (gemm_s8/packed_layout.h).
#pragma once

#include "common/api.h"

namespace tfq::cpu {

struct expand_s4_kernel {
  // One panel: out (quads, 16, 4) <- q - zero_point of its column, from packed (quads, 16, 2) and
  // 16 zero-points. `out` is 64-byte aligned.
  void (*expand)(const uint8_t* packed, const uint8_t* zero_point, int64_t quads, int8_t* out);
};

// The zero-points of a panel of a 4-bit weight of n columns; 0 beyond them.
struct PanelZeroPoints {
  uint8_t values[16];
};
PanelZeroPoints panel_zero_points(const PackedWeight& weight, int64_t n, int64_t panel);

// `panels` panels from `panel` on of a weight (n, k) in the int8 layout: in place, or expanded into
// the calling thread's scratch `slot`.
const int8_t* int8_panels(const expand_s4_kernel& kernel, const PackedWeight& weight, int64_t n,
                          int64_t k, int64_t panel, int64_t panels, int slot);

}  // namespace tfq::cpu

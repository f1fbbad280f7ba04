// The canonical layout of packed int8 weights, used as it is by every CPU level and by the file
// format.
//
//   packed[n / 16][k / 4][n % 16][k % 4]        (panels, K quads, 16, 4), zero padded
//
// n is rounded up to 16 and k to 64. A quad is what one lane of VPDPBUSD multiplies; 16 quads of a
// panel (64 values of k) are one 16 x 64-byte AMX tile; a zero weight makes whatever the kernels
// read beyond the row's end harmless. Changing this layout means raising kPackedLayoutVersion.
#pragma once

#include "common/math.h"

namespace tfq::cpu {

constexpr int kPackedLayoutVersion = 1;
constexpr int64_t kPanelColumns = 16;
constexpr int64_t kQuad = 4;
constexpr int64_t kBlockK = 64;
constexpr int64_t kBlockBytes = kPanelColumns * kBlockK;

static constexpr int64_t packed_panels(int64_t n) { return ceil_div(n, kPanelColumns); }
static constexpr int64_t packed_k(int64_t k) { return round_up(k, kBlockK); }
static constexpr int64_t packed_panel_bytes(int64_t k) { return kPanelColumns * packed_k(k); }
static constexpr int64_t packed_bytes(int64_t n, int64_t k) {
  return packed_panels(n) * packed_panel_bytes(k);
}
static constexpr int64_t packed_offset(int64_t n, int64_t k, int64_t k_size) {
  return n / kPanelColumns * packed_panel_bytes(k_size) + k / kQuad * (kPanelColumns * kQuad) +
         n % kPanelColumns * kQuad + k % kQuad;
}

}  // namespace tfq::cpu

// The canonical layout of packed int8 weights, used as it is by every CPU level and by the file
// format.
//
//   packed[n / 16][k / 4][n % 16][k % 4]        (panels, K quads, 16, 4), zero padded
//
// n is rounded up to 16 and k to 64. A quad is what one lane of VPDPBUSD multiplies; 16 quads of a
// panel (64 values of k) are one 16 x 64-byte AMX tile; a zero weight makes whatever the kernels
// read beyond the row's end harmless.
//
// 4-bit weights have the same panels and quads in half the bytes, (panels, K quads, 16, 2): byte i
// of the 32 of a panel's quad holds its value i in the low bits and its value 32 + i in the high
// ones, so that a mask and a shift restore the order above. A value that pads k is its row's
// zero-point, one that pads n is 0, as is that row's zero-point.
//
// Changing either layout means raising kPackedLayoutVersion.
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

constexpr int64_t kQuadBytes = kPanelColumns * kQuad;  // int8 values of a quad of all columns
constexpr int64_t kQuadBytesS4 = kQuadBytes / 2;

static constexpr int64_t packed_panel_bytes_s4(int64_t k) { return packed_panel_bytes(k) / 2; }

// Where the 4-bit layout keeps the value at `offset` of the int8 one.
struct NibblePosition {
  int64_t byte;
  int shift;
};
static constexpr NibblePosition nibble_position(int64_t offset) {
  const int64_t value = offset % kQuadBytes;
  return {offset / kQuadBytes * kQuadBytesS4 + value % kQuadBytesS4, value < kQuadBytesS4 ? 0 : 4};
}

}  // namespace tfq::cpu

// Exact 3x3 convolution by Winograd's F(4x4, 3x3) in integers (Lavin and Gray, CVPR 2016): 36
// products for 16 outputs instead of 144.
//
// An output tile of 4x4 pixels reads a 6x6 patch d. With g the 3x3 taps and, per dimension,
//
//        4  0 -5  0  1  0             6  0  0             1  4  4  1  1  0   / 24
//        0  4  4 -1 -1  0             1  1  1      A^T =  0  2 -2  1 -1  0   / 12
//   B^T= 0 -4  4  1 -1  0        G =  1 -1  1             0  1  1  1  1  0   / 6
//        0 -2 -1  2  1  0             1  2  4             0  1 -1  2 -2  1   / 6
//        0  2 -1 -2  1  0             1 -2  4
//        0  4  0 -5  0  1             0  0  6
//
// the tile is A^T [sum over channels of (G g G^T) * (B^T d B)] A: rows of B^T and G are scaled to
// integers, and the denominators collected in A^T.
//
// Why it is exact. The pixels are centred, d = x - 128 in [-128, 127], and |w| <= 127, so
// |B^T d B| <= 10*10*128 and |G g G^T| <= 7*7*127 fit int16, and a product of two pairs int32.
// Everything after is arithmetic modulo 2^32, where overflow does no harm: the sums of products,
// the integer numerators of A^T, and the division by 9 as a product with its inverse. That leaves
// y * 2^s with s <= 6, from which an arithmetic shift recovers y if |y| < 2^25. A sum over 224
// channels has |y| <= 9 * 224 * 128 * 127 < 2^25, so channels are summed in chunks of at most 224,
// and the chunks, with 128 * weight_sum, added in plain int32.
#pragma once

#include "common/api.h"
#include "cpu/isa.h"

namespace tfq::cpu {

constexpr int64_t kWinogradTile = 4;
constexpr int64_t kWinogradPatch = 6;
constexpr int64_t kWinogradPositions = kWinogradPatch * kWinogradPatch;
// Channels come in blocks of 64, and of 3 blocks in a chunk (192 <= 224).
constexpr int64_t kWinogradBlock = 64;
constexpr int64_t kWinogradChunkBlocks = 3;
// int16 pairs of a block. A pair is channels (4j, 4j+2) or (4j+1, 4j+3): what splitting the words
// of packed bytes yields. A strip is sixteen pairs of one kind; the two strips of a block follow
// each other.
constexpr int64_t kWinogradStrip = 16;
constexpr int64_t kWinogradPairs = 2 * kWinogradStrip;

// Everything below holds, for each of 36 positions, `position_stride` elements apart:

// patches[position][strip][tile][16 pairs][2] <- B^T d B of one tile over `blocks` blocks of
// channels.
struct WinogradInput {
  const uint8_t* const* pixels;  // 36 pixels of the patch, row by row, `blocks` * 64 channels each
  int64_t blocks;
  int16_t* patches;  // of this tile
  int64_t position_stride, strip_stride;
};

// taps[position][pair][16 columns][2] <- G g G^T of one panel of packed weights.
struct WinogradWeight {
  const int8_t* panel;  // first tap's quad of the first channel (packed_layout.h)
  int64_t tap_bytes;    // from a tap to the next
  int64_t blocks;
  int16_t* taps;
  int64_t position_stride;
};

// sums[tile][panel * 16 + column] <- sum over pairs of patches * taps, of one position.
struct WinogradProduct {
  const int16_t* patches;  // (strips, ..., tiles, 16 pairs, 2)
  int64_t strip_stride;    // int16 from a strip of the patches to the next
  const int16_t* taps;     // (panels, ..., strips, 16 pairs, 16 columns, 2)
  int64_t panel_stride;    // int16 from a panel to the next
  int64_t tiles, panels, strips;
  int32_t* sums;  // (tiles, panels * 16)
};

// out[4 rows][4 pixels][columns] <- A^T sums A of one tile, plus `start` or what out holds.
struct WinogradOutput {
  const int32_t* sums;  // of this tile: (columns)
  int64_t position_stride;
  int64_t columns;  // a multiple of 16
  int32_t* out;
  int64_t row_stride;    // int32 from a row of the tile to the next
  const int32_t* start;  // (columns) or null
};

struct winograd_s16_kernel {
  void (*transform_input)(const WinogradInput&);
  void (*transform_weight)(const WinogradWeight&);
  void (*multiply)(const WinogradProduct&);
  void (*transform_output)(const WinogradOutput&);
};

// Whether it is the faster way at this level: a pure function.
bool prefers_winograd(const ConvGeometry& geometry, Level level);

// The convolution, with the same result as conv2d_s8; `geometry` must be 3x3 with stride 1, its
// channels a multiple of 64.
void conv2d_winograd(const ConvArgs& args);

}  // namespace tfq::cpu

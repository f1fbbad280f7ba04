// Block kernel, AMX: up to 32 rows x 32 columns in four 16 x 16 int32 tiles.
//
// TDPBUSD multiplies a 16 x 64 u8 tile by a 64 x 16 s8 tile, 16,384 products in 16 cycles, without
// saturation (Intel SDM volume 2, TDPBUSD). Two tiles of rows and two of weights feed four
// products, the best ratio eight tile registers allow: 0-3 sums, 4-5 rows, 6-7 weights. A packed
// 64-value block of a panel is one weight tile, 1,024 contiguous bytes.
#include <immintrin.h>

#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"

#if !defined(__AMX_INT8__) || !defined(__AMX_TILE__)
#error "gemm_s8/amx.cpp needs -mamx-tile -mamx-int8 (cmake/TfqIsa.cmake)"
#endif

namespace tfq::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kRows = 2 * kTileRows;
constexpr int64_t kColumns = 2 * kPanelColumns;
constexpr int64_t kAccBytes = kColumns * static_cast<int64_t>(sizeof(int32_t));
constexpr int64_t kTileBytes = 64;
constexpr int64_t kTileQuads = kBlockK / kQuad;

// Memory operand of LDTILECFG, palette 1: eight tiles of 16 rows x 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

// In memory, not on the stack: GCC 12 declares only the first eight bytes as read by LDTILECFG and
// would drop the stores of the others.
const TileConfig kTileConfig;

void begin() { _tile_loadconfig(&kTileConfig); }

void end() { _tile_release(); }

void block_32x32(const GemmBlock& p) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const uint8_t* a0 = p.a;
  const uint8_t* a1 = p.a + kTileRows * p.lda;
  const int8_t* b0 = p.b;
  const int8_t* b1 = p.b + p.panel_bytes;
  for (int64_t i = 0; i < p.quads; i += kTileQuads) {
    _tile_loadd(6, b0, kTileBytes);
    _tile_loadd(4, a0, p.lda);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, b1, kTileBytes);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, a1, p.lda);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
    a0 += kBlockK;
    a1 += kBlockK;
    b0 += kBlockBytes;
    b1 += kBlockBytes;
  }
  _tile_stored(0, p.acc, kAccBytes);
  _tile_stored(1, p.acc + kPanelColumns, kAccBytes);
  _tile_stored(2, p.acc + kTileRows * kColumns, kAccBytes);
  _tile_stored(3, p.acc + kTileRows * kColumns + kPanelColumns, kAccBytes);
}

void block_16x32(const GemmBlock& p) {
  _tile_zero(0);
  _tile_zero(1);
  const uint8_t* a = p.a;
  const int8_t* b0 = p.b;
  const int8_t* b1 = p.b + p.panel_bytes;
  for (int64_t i = 0; i < p.quads; i += kTileQuads) {
    _tile_loadd(4, a, p.lda);
    _tile_loadd(6, b0, kTileBytes);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, b1, kTileBytes);
    _tile_dpbusd(1, 4, 7);
    a += kBlockK;
    b0 += kBlockBytes;
    b1 += kBlockBytes;
  }
  _tile_stored(0, p.acc, kAccBytes);
  _tile_stored(1, p.acc + kPanelColumns, kAccBytes);
}

void block_32x16(const GemmBlock& p) {
  _tile_zero(0);
  _tile_zero(2);
  const uint8_t* a0 = p.a;
  const uint8_t* a1 = p.a + kTileRows * p.lda;
  const int8_t* b = p.b;
  for (int64_t i = 0; i < p.quads; i += kTileQuads) {
    _tile_loadd(6, b, kTileBytes);
    _tile_loadd(4, a0, p.lda);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(5, a1, p.lda);
    _tile_dpbusd(2, 5, 6);
    a0 += kBlockK;
    a1 += kBlockK;
    b += kBlockBytes;
  }
  _tile_stored(0, p.acc, kAccBytes);
  _tile_stored(2, p.acc + kTileRows * kColumns, kAccBytes);
}

void block_16x16(const GemmBlock& p) {
  _tile_zero(0);
  const uint8_t* a = p.a;
  const int8_t* b = p.b;
  for (int64_t i = 0; i < p.quads; i += kTileQuads) {
    _tile_loadd(4, a, p.lda);
    _tile_loadd(6, b, kTileBytes);
    _tile_dpbusd(0, 4, 6);
    a += kBlockK;
    b += kBlockBytes;
  }
  _tile_stored(0, p.acc, kAccBytes);
}

void block(const GemmBlock& p) {
  const bool two_row_tiles = p.rows > kTileRows;
  if (p.columns > kPanelColumns) {
    two_row_tiles ? block_32x32(p) : block_16x32(p);
  } else {
    two_row_tiles ? block_32x16(p) : block_16x16(p);
  }
}

}  // namespace

extern const gemm_s8_kernel gemm_s8_32x32_amx;
const gemm_s8_kernel gemm_s8_32x32_amx = {kRows, kColumns, kTileRows, kBlockK, begin,
                                          end,   block,    block,     nullptr};

}  // namespace tfq::cpu

// Tiles of the integer products: one list that the kernels, the choice and the tests read.
#pragma once

#include <cstdint>

#include "cuda/product_args.h"

namespace tfq::cuda {

// A block computes (block_m, block_n) outputs with warps_m x warps_n warps; `stages` buffers of
// kBlockK depth. blocks = resident blocks the registers must allow.
struct Tile {
  const char* name;
  int block_m, block_n, warps_m, warps_n, stages, blocks;

  constexpr int threads() const { return 32 * warps_m * warps_n; }
  constexpr int stage_bytes() const { return (block_m + block_n) * kBlockK; }
  constexpr int shared_bytes() const { return stages * stage_bytes(); }
};

// 160 divides the channels of SD1.5 and SDXL, 128 and 64 those of the DDPMs. Two 128 x 160: 64 x 80
// per warp needs least shared-memory bandwidth, 32 x 80 puts eight warps on cards whose 100 KiB of
// shared memory hold one block.
//
//      block_m, block_n, warps_m, warps_n, stages, blocks
#define TFQ_CUDA_TILES(TILE)    \
  TILE(128, 160, 2, 2, 4, 1)    \
  TILE(128, 160, 4, 2, 4, 1)    \
  TILE(128, 128, 2, 2, 4, 1)    \
  TILE(64, 160, 2, 2, 4, 2)     \
  TILE(64, 64, 2, 2, 5, 4)

constexpr Tile kTiles[] = {
#define TFQ_TILE(m, n, wm, wn, stages, blocks) \
  {#m "x" #n "x64_w" #wm "x" #wn, m, n, wm, wn, stages, blocks},
    TFQ_CUDA_TILES(TFQ_TILE)
#undef TFQ_TILE
};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);

}  // namespace tfq::cuda

// Tiles of the integer products: one list that the kernels, the choice and the tests read.
#pragma once

#include <cstdint>

#include "cuda/product_args.h"

namespace tfq::cuda {

// Which instructions multiply: mma.sync, of every card since sm_80, or Hopper's wgmma, of sm_90a.
enum class Level : int { kSm80 = 80, kSm90 = 90 };

// Which warpgroups of a block share a tile: all that multiply; or one each, whose epilogue runs while
// the other multiplies.
enum class Schedule { kCooperative, kPingPong };

// Facts of a row that the epilogue keeps in shared memory (epilogue.cuh's RowFacts).
constexpr int kRowFactsBytes = 24;
constexpr int kWarpgroup = 128;  // threads

// A block computes (block_m, block_n) outputs with warps_m x warps_n warps; `stages` buffers of
// block_k depth. blocks = resident blocks the registers must allow. At sm_90 the warps are in
// warpgroups along m, one more warpgroup fills the stages, and the epilogue does not share their
// memory; `cluster` blocks along m run together and share their rows of B.
struct Tile {
  const char* name;
  Level level;
  int block_m, block_n, block_k, warps_m, warps_n, stages, blocks, cluster;
  Schedule schedule;

  constexpr int threads() const {
    return 32 * warps_m * warps_n + (level == Level::kSm90 ? kWarpgroup : 0);
  }
  constexpr int stage_bytes() const { return (block_m + block_n) * block_k; }
  constexpr int tiles_at_once() const { return schedule == Schedule::kPingPong ? 2 : 1; }
  constexpr int barrier_offset() const {
    return stages * stage_bytes() + tiles_at_once() * block_m * kRowFactsBytes;
  }
  constexpr int shared_bytes() const {
    constexpr int kBarriers = 2 * 8;  // bytes a stage, and of the turns of two tiles
    const int rings = stages + (schedule == Schedule::kPingPong ? 1 : 0);
    return level == Level::kSm90 ? barrier_offset() + rings * kBarriers : stages * stage_bytes();
  }
};

// 160 divides the channels of SD1.5 and SDXL, 128 and 64 those of the DDPMs. Two 128 x 160: 64 x 80
// per warp needs least shared-memory bandwidth, 32 x 80 puts eight warps on cards whose 100 KiB of
// shared memory hold one block.
//
//      block_m, block_n, warps_m, warps_n, stages, blocks
#define TFQ_CUDA_TILES(TILE) \
  TILE(128, 160, 2, 2, 4, 1) \
  TILE(128, 160, 4, 2, 4, 1) \
  TILE(128, 128, 2, 2, 4, 1) \
  TILE(64, 160, 2, 2, 4, 2)  \
  TILE(64, 64, 2, 2, 5, 4)

// As many stages as fit into 227 KiB. Two warpgroups multiply, for one alone leaves the tensor
// cores waiting; 64 rows have work for one. Clusters for tiles that would else read more from L2 than
// it delivers; ping-pong for products that are short beside their epilogue.
//
//      block_m, block_n, name, schedule, warpgroups, stages, cluster
#define TFQ_CUDA_TILES_SM90(TILE)                 \
  TILE(256, 160, wg2, kCooperative, 2, 4, 1)      \
  TILE(128, 160, wg2, kCooperative, 2, 6, 1)      \
  TILE(64, 160, wg1, kCooperative, 1, 7, 1)       \
  TILE(256, 128, wg2, kCooperative, 2, 4, 1)      \
  TILE(128, 128, wg2, kCooperative, 2, 6, 1)      \
  TILE(256, 160, wg2_c2, kCooperative, 2, 4, 2)   \
  TILE(128, 160, wg2_c2, kCooperative, 2, 6, 2)   \
  TILE(64, 160, wg1_c2, kCooperative, 1, 7, 2)    \
  TILE(128, 128, wg2_c2, kCooperative, 2, 6, 2)   \
  TILE(128, 160, pp, kPingPong, 2, 6, 1)          \
  TILE(128, 160, pp_c2, kPingPong, 2, 6, 2)       \
  TILE(128, 128, pp_c2, kPingPong, 2, 6, 2)

constexpr int kBlockKSm90 = 128;

constexpr Tile kTiles[] = {
#define TFQ_TILE(m, n, wm, wn, stages, blocks) \
  {#m "x" #n "x64_w" #wm "x" #wn, Level::kSm80, m, n, kBlockK, wm, wn, stages, blocks, 1, \
   Schedule::kCooperative},
    TFQ_CUDA_TILES(TFQ_TILE)
#undef TFQ_TILE
#define TFQ_TILE(m, n, name, schedule, groups, stages, cluster)                                \
  {#m "x" #n "x128_" #name, Level::kSm90, m, n, kBlockKSm90, 4 * groups, 1, stages, 1, cluster, \
   Schedule::schedule},
        TFQ_CUDA_TILES_SM90(TFQ_TILE)
#undef TFQ_TILE
};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);
constexpr int kTileCountSm80 = 5;  // the first ones
static_assert(kTiles[kTileCountSm80 - 1].level == Level::kSm80 &&
              kTiles[kTileCountSm80].level == Level::kSm90);

}  // namespace tfq::cuda

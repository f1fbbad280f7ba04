// The integer product of a tile on Hopper: one warpgroup fills stages, the others multiply them.
//
// A stage is block_m rows of A and block_n rows of B, 128 bytes each: one unit of 128, or two one after
// another of 64, which may be of different taps. Units are swizzled as wgmma reads them. A stage's
// `full` barrier ends a phase when the copies of the stage have come, its `empty` one when every warp
// has multiplied it. Blocks are persistent: they take every grid-th part, so that the copies of a
// part begin while the epilogue of the one before runs.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/ptx_sm90.cuh"

namespace tfq::cuda {

static_assert(sizeof(RowFacts) == kRowFactsBytes);

template <int Index, Swizzle kUnit>
struct TileShapeSm90 {
  static constexpr Tile kTile = kTiles[Index];
  static constexpr int kBlockM = kTile.block_m, kBlockN = kTile.block_n;
  static constexpr int kThreads = kTile.threads() - kWarpgroup, kStages = kTile.stages;
  static constexpr int kWarpgroups = kThreads / kWarpgroup;  // that multiply
  static constexpr int kStageBytes = kTile.stage_bytes();
  static constexpr int kProductRows = 64;
  static constexpr int kPiecesM = kBlockM / kWarpgroups / kProductRows;  // one product each
  static constexpr int kPiecesN = kBlockN / 16;
  static constexpr bool kHalfGroup = false;
  static constexpr Swizzle kSwizzle = kUnit;
  static constexpr int kUnitBytes = static_cast<int>(kUnit);
  static_assert(kTile.level == Level::kSm90 && kBlockN % kChannelGroup == 0);
  static_assert(kBlockKSm90 % kUnitBytes == 0);

  static constexpr uint32_t kScratch = kStages * kStageBytes;
  static constexpr int kBarriers = kTile.barrier_offset();
  static TFQ_DEVICE int thread() { return simt::thread_index() - kWarpgroup; }
  static TFQ_DEVICE void sync() { ptx::sync_threads<1, kThreads>(); }
  static TFQ_DEVICE int first_row() { return thread() / kWarpgroup * kPiecesM * kProductRows; }
  static TFQ_DEVICE int piece_row(int piece) {
    return first_row() + kProductRows * piece + 16 * (thread() % kWarpgroup / simt::kWarpSize);
  }
  static TFQ_DEVICE constexpr int piece_column(int piece) { return 16 * piece; }

  // A unit's rows of A and of B.
  static TFQ_DEVICE uint32_t unit_a(int stage, int unit) {
    return static_cast<uint32_t>(stage * kStageBytes + unit * kBlockM * kUnitBytes);
  }
  static TFQ_DEVICE uint32_t unit_b(int stage, int unit) {
    return static_cast<uint32_t>(stage * kStageBytes + kBlockM * kBlockKSm90 +
                                 unit * kBlockN * kUnitBytes);
  }

  static TFQ_DEVICE uint32_t full(int stage) {
    return static_cast<uint32_t>(kBarriers + 16 * stage);
  }
  static TFQ_DEVICE uint32_t empty(int stage) { return full(stage) + 8; }
};

// Which stage comes next, and the parity of its phase.
template <typename Shape>
struct StagePosition {
  int stage = 0;
  uint32_t parity = 0;

  TFQ_DEVICE void advance() {
    if (++stage < Shape::kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <typename Shape>
TFQ_DEVICE void init_stages() {
  if (simt::thread_index() == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      ptx::init_barrier(Shape::full(stage), 1);
      ptx::init_barrier(Shape::empty(stage), Shape::kThreads / simt::kWarpSize);
    }
    ptx::publish_barriers();
  }
  simt::sync_block();
}

// f(tile, its k-blocks) for all parts of this block; `blocks` is the product's number of them.
template <typename Shape, typename F>
TFQ_DEVICE void for_each_part(const GemmLaunch& args, int blocks, const F& f) {
  const int rows = (args.m + Shape::kBlockM - 1) / Shape::kBlockM;
  const int columns = (args.n + Shape::kBlockN - 1) / Shape::kBlockN;
  const int parts = rows * columns * args.split.count;
  for (int part = static_cast<int>(simt::block_index().x); part < parts;
       part += static_cast<int>(simt::grid_size().x))
    f(tile_position(part % (rows * columns), rows, columns),
      k_range(blocks, args.split.count, part / (rows * columns)));
}

// Fills the stages of all parts, as one thread. A Loader's begin(tile) comes before a part, and its
// load(stage, unit, index, barrier) queues the copies of unit `index` of the depth.
template <typename Shape, typename Loader>
TFQ_DEVICE void fill_stages(const GemmLaunch& args, int blocks, Loader& loader) {
  constexpr int kUnits = kBlockKSm90 / Shape::kUnitBytes;
  StagePosition<Shape> at;
  for_each_part<Shape>(args, blocks, [&](const TilePosition& tile, const KRange& range) {
    loader.begin(tile);
    for (int block = range.begin; block < range.end; ++block) {
      const uint32_t full = Shape::full(at.stage);
      // In the first round nobody has used the stage: the phase before the first counts as ended.
      if (!simt::fault(simt::kFaultNoWaitForEmpty))
        ptx::wait_barrier(Shape::empty(at.stage), at.parity ^ 1);
      ptx::arrive_expecting(full, Shape::kStageBytes -
                                      (simt::fault(simt::kFaultExpectTooFewBytes) ? 128 : 0));
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit)
        loader.load(at.stage, unit, block * kUnits + unit, full);
      at.advance();
    }
  });
}

template <typename Shape>
TFQ_DEVICE void release_stage(int stage) {
  if (simt::lane_index() == 0) ptx::arrive(Shape::empty(stage));
}

// acc = sum over the next `blocks` stages.
template <typename Shape>
TFQ_DEVICE void multiply_stages(StagePosition<Shape>& at, int blocks, Accumulators<Shape>& acc) {
  const Swizzle swizzle = simt::fault(simt::kFaultWrongSwizzle) ? Swizzle::k64 : Shape::kSwizzle;
  int previous = 0;
  for (int block = 0; block < blocks; ++block) {
    if (!simt::fault(simt::kFaultNoWaitForFull))
      ptx::wait_barrier(Shape::full(at.stage), at.parity);
    const int a_row = Shape::first_row() * Shape::kUnitBytes;
    ptx::fence_products();
#pragma unroll
    for (int k = 0; k < kBlockKSm90; k += 32) {
      const int unit = k / Shape::kUnitBytes, within = k % Shape::kUnitBytes;
      const uint64_t b = ptx::matrix_descriptor(
          Shape::unit_b(at.stage, unit) + static_cast<uint32_t>(within), swizzle);
#pragma unroll
      for (int i = 0; i < Shape::kPiecesM; ++i) {
        const int row = a_row + i * Shape::kProductRows * Shape::kUnitBytes;
        const uint64_t a = ptx::matrix_descriptor(
            Shape::unit_a(at.stage, unit) + static_cast<uint32_t>(row + within), swizzle);
        ptx::multiply_add_u8s8(acc.value[i], a, b, block > 0 || k > 0);
      }
    }
    ptx::commit_products();
    if (simt::fault(simt::kFaultReleaseBeforeProducts)) release_stage<Shape>(at.stage);
    // The batch before has ended; this one goes on while the next stage is waited for.
    ptx::wait_products<1>();
    if (block > 0 && !simt::fault(simt::kFaultReleaseBeforeProducts))
      release_stage<Shape>(previous);
    previous = at.stage;
    at.advance();
  }
  ptx::wait_products<0>();
  if (!simt::fault(simt::kFaultReleaseBeforeProducts)) release_stage<Shape>(previous);
}

// One warpgroup fills the stages, the others multiply them and finish the tiles.
template <typename Shape, bool Geglu, typename Loader, typename Border>
TFQ_DEVICE void run_product(const GemmLaunch& args, int blocks, Loader& loader,
                            const Border& border) {
  init_stages<Shape>();
  // Of 65536 registers three warpgroups have 168 a thread; two threads in three need more.
  constexpr bool kMovesRegisters = Shape::kWarpgroups == 2;
  if (simt::thread_index() < kWarpgroup) {
    if constexpr (kMovesRegisters) ptx::release_registers<40>();
    if (simt::thread_index() == 0) fill_stages<Shape>(args, blocks, loader);
  } else {
    if constexpr (kMovesRegisters) ptx::claim_registers<232>();
    StagePosition<Shape> at;
    for_each_part<Shape>(args, blocks, [&](const TilePosition& tile, const KRange& range) {
      Accumulators<Shape> acc;
      multiply_stages<Shape>(at, range.end - range.begin, acc);
      if (args.split.count > 1 && !reduce_splits<Shape>(args.split, tile.index, acc)) return;
      finish_tile<Shape, Geglu>(args, acc, tile.row, tile.column, border);
    });
  }
}

}  // namespace tfq::cuda

// The integer product of a tile on Hopper: one warpgroup fills stages, the others multiply them.
//
// A stage is block_m rows of A and block_n rows of B, 128 bytes each: one unit of 128, or two one after
// another of 64, which may be of different taps. Units are swizzled as wgmma reads them. A stage's
// `full` barrier ends a phase when the copies of the stage have come, its `empty` one when every warp
// has multiplied it. Blocks are persistent: they take every grid-th part, so that the copies of a
// part begin while the epilogue of the one before runs.
//
// The blocks of a cluster have tiles one below the other. Each copies a part of their rows of B to all
// of them, so a stage is empty when every warp of the cluster has multiplied it. A block below the last
// row copies and multiplies like the others, but has nothing to finish.
//
// A launch begins while the one before it ends, up to the first thing it may not do then: no thread
// reads or writes global memory before it has waited, not even weights, which that launch may have made.
//
// Cooperative warpgroups have rows of one tile each. In ping-pong each has every other part of the
// block to itself; `turn` barriers say whose products come next, so that they come as the stages do and
// one warpgroup finishes its tile while the other has the tensor cores.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/ptx_sm90.cuh"

namespace tfq::cuda {

static_assert(sizeof(RowFacts) == kRowFactsBytes);

template <int Index, Swizzle kUnit>
struct TileShapeSm90 {
  static constexpr Tile kTile = kTiles[Index];
  static constexpr int kBlockM = kTile.block_m, kBlockN = kTile.block_n;
  static constexpr int kStages = kTile.stages;
  static constexpr bool kPingPong = kTile.schedule == Schedule::kPingPong;
  static constexpr int kWarpgroups = kTile.threads() / kWarpgroup - 1;  // that multiply
  static constexpr int kThreads = kWarpgroups * kWarpgroup / kTile.tiles_at_once();  // of a tile
  static constexpr int kStageBytes = kTile.stage_bytes();
  static constexpr int kProductRows = 64;
  static constexpr int kPiecesM = kBlockM * kWarpgroup / kThreads / kProductRows;  // one product each
  static constexpr int kPiecesN = kBlockN / 16;
  static constexpr bool kHalfGroup = false;
  // In ping-pong registers do not suffice for both, and products hide the epilogue.
  static constexpr bool kSimpleTiles = !kPingPong;
  static constexpr int kCluster = kTile.cluster;
  static constexpr Swizzle kSwizzle = kUnit;
  static constexpr int kUnitBytes = static_cast<int>(kUnit);
  static_assert(kTile.level == Level::kSm90 && kBlockN % kChannelGroup == 0);
  static_assert(kBlockKSm90 % kUnitBytes == 0);

  static constexpr int kBarriers = kTile.barrier_offset();
  static TFQ_DEVICE int warpgroup() { return simt::thread_index() / kWarpgroup - 1; }
  static TFQ_DEVICE int tile() { return kPingPong ? warpgroup() : 0; }  // of those at once
  static TFQ_DEVICE int thread() {
    return kPingPong ? simt::thread_index() % kWarpgroup : simt::thread_index() - kWarpgroup;
  }
  static TFQ_DEVICE void sync() {
    if (simt::fault(simt::kFaultNoEpilogueBarrier)) return;
    ptx::sync_threads<kThreads>(1 + (simt::fault(simt::kFaultSharedEpilogueBarrier) ? 0 : tile()));
  }
  static TFQ_DEVICE uint32_t scratch() {
    const int of_others = simt::fault(simt::kFaultSharedScratch) ? 0 : tile() * kBlockM;
    return static_cast<uint32_t>(kStages * kStageBytes + of_others * kRowFactsBytes);
  }
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
  static TFQ_DEVICE uint32_t turn(int warpgroup) {
    return static_cast<uint32_t>(kBarriers + 16 * kStages + 8 * warpgroup);
  }
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
  TFQ_DEVICE void skip(int stages) {
    const int next = stage + stages;
    stage = next % Shape::kStages;
    parity ^= static_cast<uint32_t>(next / Shape::kStages) & 1;
  }
};

// Of the block in its cluster: clusters are along x.
template <typename Shape>
TFQ_DEVICE int cluster_rank() {
  return static_cast<int>(simt::block_index().x) % Shape::kCluster;
}

template <typename Shape>
TFQ_DEVICE void init_stages() {
  if (simt::thread_index() == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      ptx::init_barrier(Shape::full(stage), 1);
      ptx::init_barrier(Shape::empty(stage), Shape::kCluster * Shape::kThreads / simt::kWarpSize);
    }
    if constexpr (Shape::kPingPong)
      for (int group = 0; group < Shape::kWarpgroups; ++group)
        ptx::init_barrier(Shape::turn(group), kWarpgroup / simt::kWarpSize);
    if (!simt::fault(simt::kFaultUnpublishedBarriers)) ptx::publish_barriers();
  }
  if (Shape::kCluster > 1 && !simt::fault(simt::kFaultNoFirstClusterSync)) {
    ptx::sync_cluster();
  } else {
    simt::sync_block();
  }
}

// f(tile, its k-blocks, index) for all parts of this block; `blocks` is the product's number of
// k-blocks. The tiles of a cluster may end beyond the last row.
template <typename Shape, typename F>
TFQ_DEVICE void for_each_part(const GemmLaunch& args, int blocks, const F& f) {
  constexpr int kRows = Shape::kBlockM * Shape::kCluster;
  const int rows = (args.m + kRows - 1) / kRows;
  const int columns = (args.n + Shape::kBlockN - 1) / Shape::kBlockN;
  const int parts = rows * columns * args.split.count;
  const int step = static_cast<int>(simt::grid_size().x) / Shape::kCluster;
  for (int part = static_cast<int>(simt::block_index().x) / Shape::kCluster; part < parts;
       part += step) {
    TilePosition tile = tile_position(part % (rows * columns), rows, columns);
    tile.row = tile.row * Shape::kCluster + cluster_rank<Shape>();
    tile.index = tile.row * columns + tile.column;
    f(tile, k_range(blocks, args.split.count, part / (rows * columns)), part / step);
  }
}

// Copies rows of the weights: a block's share of them to all blocks of the cluster.
template <typename Shape>
class WeightUnits {
 public:
  // `map` has boxes (kBlockN / kCluster, kUnitBytes).
  TFQ_DEVICE explicit WeightUnits(const TensorMap& map) : map_(map) { ptx::prefetch_map(map); }
  TFQ_DEVICE void begin(const TilePosition& tile) {
    column_ = tile.column * Shape::kBlockN + cluster_rank<Shape>() * kRows;
  }
  // Those from depth k on.
  TFQ_DEVICE void load(int stage, int unit, int k, uint32_t barrier) const {
    const int first = cluster_rank<Shape>() * kRows;
    const uint32_t target =
        Shape::unit_b(stage, unit) + static_cast<uint32_t>(first * Shape::kUnitBytes);
    if constexpr (Shape::kCluster > 1) {
      const uint32_t all = (1u << Shape::kCluster) - 1;
      const bool self = simt::fault(simt::kFaultMulticastToItself);
      ptx::load_box_multicast(target, map_, barrier, column_, k,
                              self ? 1u << cluster_rank<Shape>() : all);
    } else {
      ptx::load_box(target, map_, barrier, column_, k);
    }
  }

 private:
  static constexpr int kRows = Shape::kBlockN / Shape::kCluster;
  static_assert(kRows % ptx::kGroupRows == 0);

  const TensorMap& map_;
  int column_ = 0;
};

// Fills the stages of all parts, as one thread; returns which would come next. A Loader's begin(tile, unit)
// comes before a part that begins with this unit of the depth, and its load_next(stage, unit, barrier)
// queues the copies of the next one to that unit of the stage.
template <typename Shape, typename Loader>
TFQ_DEVICE StagePosition<Shape> fill_stages(const GemmLaunch& args, int blocks, Loader& loader) {
  constexpr int kUnits = kBlockKSm90 / Shape::kUnitBytes;
  StagePosition<Shape> at;
  for_each_part<Shape>(args, blocks, [&](const TilePosition& tile, const KRange& range, int) {
    loader.begin(tile, range.begin * kUnits);
    for (int block = range.begin; block < range.end; ++block) {
      const uint32_t full = Shape::full(at.stage);
      // In the first round nobody has used the stage: the phase before the first counts as ended.
      if (!simt::fault(simt::kFaultNoWaitForEmpty))
        ptx::wait_barrier(Shape::empty(at.stage), at.parity ^ 1);
      ptx::arrive_expecting(full, Shape::kStageBytes -
                                      (simt::fault(simt::kFaultExpectTooFewBytes) ? 128 : 0));
#pragma unroll 1  // this warpgroup has few registers
      for (int unit = 0; unit < kUnits; ++unit)
        loader.load_next(at.stage, unit, full);
      at.advance();
    }
  });
  return at;
}

// Waits, as that thread, until all stages were released.
template <typename Shape>
TFQ_DEVICE void wait_for_releases(StagePosition<Shape> at) {
#pragma unroll 1
  for (int stage = 0; stage < Shape::kStages; ++stage, at.advance())
    ptx::wait_barrier(Shape::empty(at.stage), at.parity ^ 1);
}

// By every warp: to each block that copies into the stage.
template <typename Shape>
TFQ_DEVICE void release_stage(int stage) {
  const int lane = simt::lane_index();
  if constexpr (Shape::kCluster > 1) {
    const bool self = simt::fault(simt::kFaultNoRemoteRelease);
    if (lane < Shape::kCluster)
      ptx::arrive_at(self ? cluster_rank<Shape>() : lane, Shape::empty(stage));
  } else {
    if (lane == 0) ptx::arrive(Shape::empty(stage));
  }
}

// Waits until the products of the other warpgroup's part before part `index` of the block are queued.
template <typename Shape>
TFQ_DEVICE void wait_turn(int index) {
  // Nobody precedes part 0: as with stages, the phase before the first counts as ended.
  const uint32_t parity = static_cast<uint32_t>(index / 2 + Shape::warpgroup() + 1) & 1;
  if (!simt::fault(simt::kFaultNoTurn)) ptx::wait_barrier(Shape::turn(Shape::warpgroup()), parity);
}
template <typename Shape>
TFQ_DEVICE void pass_turn() {
  if (simt::lane_index() == 0) ptx::arrive(Shape::turn(Shape::warpgroup() ^ 1));
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
  if constexpr (Shape::kPingPong) pass_turn<Shape>();
  ptx::wait_products<0>();
#pragma unroll
  for (int i = 0; i < Shape::kPiecesM; ++i) ptx::fence_sums(acc.value[i]);
  if (!simt::fault(simt::kFaultReleaseBeforeProducts)) release_stage<Shape>(previous);
}

// One warpgroup fills the stages, the others multiply them and finish the tiles.
template <typename Shape, bool Geglu, typename Loader, typename Border>
TFQ_DEVICE void run_product(const GemmLaunch& args, int blocks, Loader& loader,
                            const Border& border) {
  init_stages<Shape>();
  // Of 65536 registers three warpgroups have 168 a thread; two threads in three need more. No more
  // than all were given, or the claim would wait for ever.
  constexpr bool kMovesRegisters = Shape::kWarpgroups == 2;
  constexpr int kGiven = 168, kOfFillers = 40, kOfMultipliers = 232;
  static_assert(kOfFillers + 2 * kOfMultipliers <= 3 * kGiven);
  if (simt::thread_index() < kWarpgroup) {
    if constexpr (kMovesRegisters) ptx::release_registers<kOfFillers>();
    if (simt::thread_index() == 0) {
      if (!simt::fault(simt::kFaultCopyBeforeLaunches)) ptx::wait_for_launches();
      const StagePosition<Shape> next = fill_stages<Shape>(args, blocks, loader);
      ptx::let_next_begin();
      // A block's barriers must be there until the others' warps have arrived at them. (A barrier of the
      // cluster would need .release, a fence of the device, to be as sure of that.)
      if (Shape::kCluster > 1 && !simt::fault(simt::kFaultEndBeforeReleases))
        wait_for_releases<Shape>(next);
    }
  } else {
    if constexpr (kMovesRegisters) ptx::claim_registers<kOfMultipliers>();
    if (!simt::fault(simt::kFaultFinishBeforeLaunches)) ptx::wait_for_launches();
    StagePosition<Shape> at;
    for_each_part<Shape>(args, blocks, [&](const TilePosition& tile, const KRange& range, int index) {
      const int stages = range.end - range.begin;
      if constexpr (Shape::kPingPong) {
        if (index % 2 != Shape::warpgroup()) {
          if (!simt::fault(simt::kFaultNoSkip)) at.skip(stages);
          return;
        }
        wait_turn<Shape>(index);
      }
      Accumulators<Shape> acc;
      multiply_stages<Shape>(at, stages, acc);
      if (Shape::kCluster > 1 && tile.row * Shape::kBlockM >= args.m) return;
      if (args.split.count > 1 && !reduce_splits<Shape>(args.split, tile.index, acc)) return;
      finish_tile<Shape, Geglu>(args, acc, tile.row, tile.column, border);
    });
  }
}

}  // namespace tfq::cuda

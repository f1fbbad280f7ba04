// The integer product of a tile on Hopper: one warpgroup fills stages, the others multiply them.
//
// A stage is block_m rows of A and block_n rows of B, 128 bytes each, swizzled as wgmma reads them. Its
// `full` barrier ends a phase when the copies of the stage have come, its `empty` one when every warp
// has multiplied it. Blocks are persistent: they take every grid-th part, so that the copies of a
// part begin while the epilogue of the one before runs.
#pragma once

#include "cuda/product_tile.cuh"
#include "cuda/ptx_sm90.cuh"

namespace tfq::cuda {

// Arguments of a product whose operands are both matrices.
struct TmaGemmLaunch {
  TensorMap a, b;  // boxes (block_m, 128) and (block_n, 128)
  GemmLaunch product;
};

template <int Index>
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
  static constexpr Swizzle kSwizzle = Swizzle::k128;
  static_assert(kTile.level == Level::kSm90 && kBlockN % kChannelGroup == 0);
  static_assert(kBlockKSm90 == static_cast<int>(kSwizzle));

  static constexpr uint32_t kScratch = kStages * kStageBytes;
  static constexpr int kBarriers = kTile.barrier_offset();
  static TFQ_DEVICE int thread() { return simt::thread_index() - kWarpgroup; }
  static TFQ_DEVICE void sync() { ptx::sync_threads<1, kThreads>(); }
  static TFQ_DEVICE int first_row() { return thread() / kWarpgroup * kPiecesM * kProductRows; }
  static TFQ_DEVICE int piece_row(int piece) {
    return first_row() + kProductRows * piece + 16 * (thread() % kWarpgroup / simt::kWarpSize);
  }
  static TFQ_DEVICE constexpr int piece_column(int piece) { return 16 * piece; }

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

// f(tile, its k-blocks) for all parts of this block.
template <typename Shape, typename F>
TFQ_DEVICE void for_each_part(const GemmLaunch& args, const F& f) {
  const int rows = (args.m + Shape::kBlockM - 1) / Shape::kBlockM;
  const int columns = (args.n + Shape::kBlockN - 1) / Shape::kBlockN;
  const int blocks = (args.k + kBlockKSm90 - 1) / kBlockKSm90;
  const int parts = rows * columns * args.split.count;
  for (int part = static_cast<int>(simt::block_index().x); part < parts;
       part += static_cast<int>(simt::grid_size().x))
    f(tile_position(part % (rows * columns), rows, columns),
      k_range(blocks, args.split.count, part / (rows * columns)));
}

// Fills the stages of all parts, as one thread.
template <typename Shape>
TFQ_DEVICE void fill_stages(const TmaGemmLaunch& args) {
  StagePosition<Shape> at;
  ptx::prefetch_map(args.a);
  ptx::prefetch_map(args.b);
  for_each_part<Shape>(args.product, [&](const TilePosition& tile, const KRange& range) {
    for (int block = range.begin; block < range.end; ++block) {
      const uint32_t full = Shape::full(at.stage);
      const auto a = static_cast<uint32_t>(at.stage * Shape::kStageBytes);
      const uint32_t b = a + Shape::kBlockM * kBlockKSm90;
      // In the first round nobody has used the stage: the phase before the first counts as ended.
      if (!simt::fault(simt::kFaultNoWaitForEmpty))
        ptx::wait_barrier(Shape::empty(at.stage), at.parity ^ 1);
      ptx::arrive_expecting(full, Shape::kStageBytes -
                                      (simt::fault(simt::kFaultExpectTooFewBytes) ? 128 : 0));
      ptx::load_box(a, args.a, full, tile.row * Shape::kBlockM, block * kBlockKSm90);
      ptx::load_box(b, args.b, full, tile.column * Shape::kBlockN, block * kBlockKSm90);
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
    const auto stage = static_cast<uint32_t>(at.stage * Shape::kStageBytes);
    const uint32_t a = stage + static_cast<uint32_t>(Shape::first_row() * kBlockKSm90);
    const uint32_t b = stage + Shape::kBlockM * kBlockKSm90;
    ptx::fence_products();
#pragma unroll
    for (uint32_t k = 0; k < kBlockKSm90; k += 32) {
#pragma unroll
      for (int i = 0; i < Shape::kPiecesM; ++i)
        ptx::multiply_add_u8s8(
            acc.value[i],
            ptx::matrix_descriptor(
                a + static_cast<uint32_t>(i * Shape::kProductRows * kBlockKSm90) + k, swizzle),
            ptx::matrix_descriptor(b + k, swizzle), block > 0 || k > 0);
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

}  // namespace tfq::cuda

// out (m, n) = epilogue(x (m, k) u8 times the transpose of weight (n, k) s8), for sm_90a.
//
// grid = as many blocks as run at once. See main_loop_sm90.cuh for the product, epilogue.cuh for the
// rest.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/main_loop_sm90.cuh"

namespace tfq::cuda {

static_assert(sizeof(RowFacts) == kRowFactsBytes);

template <typename Shape, bool Geglu>
TFQ_DEVICE void multiply_parts(const GemmLaunch& args) {
  StagePosition<Shape> at;
  for_each_part<Shape>(args, [&](const TilePosition& tile, const KRange& range) {
    Accumulators<Shape> acc;
    multiply_stages<Shape>(at, range.end - range.begin, acc);
    if (args.split.count > 1 && !reduce_splits<Shape>(args.split, tile.index, acc)) return;
    finish_tile<Shape, Geglu>(args, acc, tile.row, tile.column);
  });
}

template <int TileIndex, bool Geglu>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), 1)
    gemm_s8_sm90(TFQ_GRID_CONSTANT const TmaGemmLaunch args) {
  if constexpr (ptx::kHasWgmma) {
    using Shape = TileShapeSm90<TileIndex>;
    init_stages<Shape>();
    // Of 65536 registers three warpgroups have 168 a thread; two threads in three need more.
    constexpr bool kMovesRegisters = Shape::kWarpgroups == 2;
    if (simt::thread_index() < kWarpgroup) {
      if constexpr (kMovesRegisters) ptx::release_registers<40>();
      if (simt::thread_index() == 0) fill_stages<Shape>(args);
    } else {
      if constexpr (kMovesRegisters) ptx::claim_registers<232>();
      multiply_parts<Shape, Geglu>(args.product);
    }
  }
}

}  // namespace tfq::cuda

// out (m, n) = epilogue(x (m, k) u8 times the transpose of weight (n, k) s8), for sm_80 and later.
//
// grid = (tiles, 1, splits of k). See main_loop_sm80.cuh for the product, epilogue.cuh for the rest.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/main_loop_sm80.cuh"

namespace tfq::cuda {

template <typename Shape, bool Geglu, typename LoaderA>
TFQ_DEVICE void product_tile(const GemmLaunch& args, LoaderA& loader_a,
                             const TilePosition& tile) {
  MatrixLoader<Shape::kBlockN, Shape::kThreads> loader_b(
      args.weight, tile.column * Shape::kBlockN, static_cast<int>(packed_rows(args.n)),
      static_cast<int>(packed_depth(args.k)));
  Accumulators<Shape> acc;
  const KRange range =
      k_range(k_blocks(args.k), args.split.count, static_cast<int>(simt::block_index().z));
  multiply_tile<Shape>(loader_a, loader_b, range.begin, range.end, acc);
  if (args.split.count > 1 && !reduce_splits<Shape>(args.split, tile.index, acc)) return;
  finish_tile<Shape, Geglu>(args, acc, tile.row, tile.column);
}

template <typename Shape>
TFQ_DEVICE TilePosition tile_of_block(const GemmLaunch& args) {
  return tile_position(static_cast<int>(simt::block_index().x),
                       (args.m + Shape::kBlockM - 1) / Shape::kBlockM,
                       (args.n + Shape::kBlockN - 1) / Shape::kBlockN);
}

template <int TileIndex, bool Geglu>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), kTiles[TileIndex].blocks)
    gemm_s8_sm80(TFQ_GRID_CONSTANT const GemmLaunch args) {
  using Shape = TileShape<TileIndex>;
  const TilePosition tile = tile_of_block<Shape>(args);
  MatrixLoader<Shape::kBlockM, Shape::kThreads> loader_a(args.x, tile.row * Shape::kBlockM, args.m,
                                                         args.k);
  product_tile<Shape, Geglu>(args, loader_a, tile);
}

}  // namespace tfq::cuda

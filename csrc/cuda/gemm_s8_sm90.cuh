// out (m, n) = epilogue(x (m, k) u8 times the transpose of weight (n, k) s8), for sm_90a.
//
// grid = as many blocks as run at once, whole clusters. See main_loop_sm90.cuh for the product,
// epilogue.cuh for the rest.
#pragma once

#include "cuda/main_loop_sm90.cuh"

namespace tfq::cuda {

struct TmaGemmLaunch {
  TensorMap a, b;  // boxes (block_m, 128) and (block_n / cluster, 128)
  GemmLaunch product;
};

template <typename Shape>
class MatrixUnits {
 public:
  TFQ_DEVICE explicit MatrixUnits(const TmaGemmLaunch& args) : args_(args), weights_(args.b) {
    ptx::prefetch_map(args.a);
  }
  TFQ_DEVICE void begin(const TilePosition& tile, int unit) {
    depth_ = unit * Shape::kUnitBytes;
    row_ = tile.row * Shape::kBlockM;
    weights_.begin(tile);
  }
  TFQ_DEVICE void load_next(int stage, int unit, uint32_t barrier) {
    ptx::load_box(Shape::unit_a(stage, unit), args_.a, barrier, row_, depth_);
    weights_.load(stage, unit, depth_, barrier);
    depth_ += Shape::kUnitBytes;
  }

 private:
  const TmaGemmLaunch& args_;
  WeightUnits<Shape> weights_;
  int row_ = 0, depth_ = 0;
};

template <int TileIndex, bool Geglu>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), 1)
    gemm_s8_sm90(TFQ_GRID_CONSTANT const TmaGemmLaunch args) {
  if constexpr (ptx::kHasWgmma) {
    using Shape = TileShapeSm90<TileIndex, Swizzle::k128>;
    MatrixUnits<Shape> units(args);
    run_product<Shape, Geglu>(args.product, (args.product.k + kBlockKSm90 - 1) / kBlockKSm90, units,
                              NoBorder{});
  }
}

}  // namespace tfq::cuda

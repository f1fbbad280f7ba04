// out (m, n) = epilogue(x (m, k) u8 times the transpose of weight (n, k) s8), for sm_90a.
//
// The last of k may be of another source. The unit in which the first ends has zeros where the weights of
// the second begin, and those are copied again with it.
//
// grid = as many blocks as run at once, whole clusters. See main_loop_sm90.cuh for the product,
// epilogue.cuh for the rest.
#pragma once

#include "cuda/main_loop_sm90.cuh"

namespace tfq::cuda {

struct TmaGemmLaunch {
  TensorMap a, b;  // boxes (block_m, 128) and (block_n / cluster, 128)
  TensorMap a2;    // of a second source, as a
  int32_t k2;      // its depth, the last of product.k; 0: there is none
  GemmLaunch product;
};

template <typename Shape>
TFQ_DEVICE int units_of_depth(int depth) {
  return (depth + Shape::kUnitBytes - 1) / Shape::kUnitBytes;
}

template <typename Shape>
class MatrixUnits {
 public:
  TFQ_DEVICE explicit MatrixUnits(const TmaGemmLaunch& args) : args_(args), weights_(args.b) {
    ptx::prefetch_map(args.a);
    if (args.k2 > 0) ptx::prefetch_map(args.a2);
  }
  TFQ_DEVICE void begin(const TilePosition& tile, int unit) {
    const int of_first = units_of_depth<Shape>(first_depth());
    second_ = unit >= of_first;
    depth_ = (unit - (second_ ? of_first : 0)) * Shape::kUnitBytes;
    row_ = tile.row * Shape::kBlockM;
    weights_.begin(tile);
  }
  TFQ_DEVICE void load_next(int stage, int unit, uint32_t barrier) {
    ptx::load_box(Shape::unit_a(stage, unit), second_ ? args_.a2 : args_.a, barrier, row_, depth_);
    weights_.load(stage, unit, (second_ ? first_depth() : 0) + depth_, barrier);
    depth_ += Shape::kUnitBytes;
    if (second_ || depth_ < first_depth()) return;
    second_ = true;
    depth_ = 0;
  }

 private:
  TFQ_DEVICE int first_depth() const { return args_.product.k - args_.k2; }

  const TmaGemmLaunch& args_;
  WeightUnits<Shape> weights_;
  int row_ = 0, depth_ = 0;
  bool second_ = false;
};

template <int TileIndex, bool Geglu>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), 1)
    gemm_s8_sm90(TFQ_GRID_CONSTANT const TmaGemmLaunch args) {
  if constexpr (ptx::kHasWgmma) {
    using Shape = TileShapeSm90<TileIndex, Swizzle::k128>;
    static_assert(Shape::kUnitBytes == kBlockKSm90);
    const int blocks =
        units_of_depth<Shape>(args.product.k - args.k2) + units_of_depth<Shape>(args.k2);
    MatrixUnits<Shape> units(args);
    run_product<Shape, Geglu>(args.product, blocks, units, NoBorder{});
  }
}

}  // namespace tfq::cuda

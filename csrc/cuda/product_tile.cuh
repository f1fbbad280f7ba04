// A tile of an integer product, whatever multiplies it: its accumulators, its place, split-K.
//
// A Shape says how the accumulators lie on the threads: kBlockM x kBlockN outputs on kThreads threads,
// numbered by thread() and met by sync(); piece_row(i) and piece_column(p), the first row and column of
// a warp's pieces of 16 x 16; scratch(), the offset of shared memory that is free once the threads have
// met after the product.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/tile.h"

namespace tfq::cuda {

// The accumulators of a thread: element [i][2 * p + j] is the 16 x 8 piece of rows 16 * i and
// columns 8 * j of column piece p.
template <typename Shape>
struct Accumulators {
  int32_t value[Shape::kPiecesM][2 * Shape::kPiecesN][4];
};

// Which tile a block works on: groups of eight rows of tiles, column by column within a group, so
// that blocks that run together share A and B in L2.
struct TilePosition {
  int row, column, index;
};
TFQ_DEVICE TilePosition tile_position(int block, int rows, int columns) {
  constexpr int kGroupRows = 8;
  const int group = block / (kGroupRows * columns);
  const int first = group * kGroupRows;
  const int height = rows - first < kGroupRows ? rows - first : kGroupRows;
  const int within = block - group * kGroupRows * columns;
  const int row = first + within % height, column = within / height;
  return {row, column, row * columns + column};
}

// The k-blocks of a part.
struct KRange {
  int begin, end;
};
TFQ_DEVICE KRange k_range(int blocks, int splits, int split) {
  const int each = blocks / splits, extra = blocks % splits;
  const int begin = split * each + (split < extra ? split : extra);
  return {begin, begin + each + (split < extra ? 1 : 0)};
}

// Adds this block's sums to those of the other blocks of the tile. True for the block that came
// last, which then holds the total. Integer sums: the same whatever the order. Leaves sums and
// counters zero for the next launch.
template <typename Shape>
TFQ_DEVICE bool reduce_splits(const SplitK& split, int tile, Accumulators<Shape>& acc) {
  constexpr int kRegisters = Shape::kPiecesM * 2 * Shape::kPiecesN * 4;
  int32_t* sums = split.sums + static_cast<int64_t>(tile) * kRegisters * Shape::kThreads +
                  Shape::thread();
  int32_t* registers = &acc.value[0][0][0];
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) ptx::atomic_add(sums + r * Shape::kThreads, registers[r]);
  ptx::memory_fence();
  Shape::sync();  // also: every warp is done with the scratch
  int32_t* arrived = simt::shared_at<int32_t>(Shape::scratch());
  if (Shape::thread() == 0) *arrived = ptx::atomic_increment(split.counters + tile);
  Shape::sync();
  const int last = split.count - 1 - (simt::fault(simt::kFaultSplitLastBlockTooEarly) ? 1 : 0);
  if (*arrived != last) return false;
  ptx::memory_fence();
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    registers[r] = ptx::load_past_l1(sums + r * Shape::kThreads);
    if (!simt::fault(simt::kFaultSplitWithoutReset)) sums[r * Shape::kThreads] = 0;
  }
  if (Shape::thread() == 0) split.counters[tile] = 0;
  return true;
}

}  // namespace tfq::cuda

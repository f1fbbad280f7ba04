// The integer product of a tile: what the GEMM and the convolution share.
//
// Stages of (block_m + block_n) x kBlockK bytes are filled by cp.async while older ones are
// multiplied; one block barrier a stage. A warp reads fragments with ldmatrix: its own 16-row
// pieces of A, 16-column pieces of B.
#pragma once

#include "cuda/product_tile.cuh"
#include "cuda/tile_loader.cuh"

namespace tfq::cuda {

template <int Index>
struct TileShape {
  static constexpr Tile kTile = kTiles[Index];
  static constexpr int kBlockM = kTile.block_m, kBlockN = kTile.block_n;
  static constexpr int kThreads = kTile.threads(), kStages = kTile.stages;
  static constexpr int kStageBytes = kTile.stage_bytes();
  static constexpr int kWarpsN = kTile.warps_n;
  static constexpr int kWarpM = kBlockM / kTile.warps_m, kWarpN = kBlockN / kTile.warps_n;
  static constexpr int kPiecesM = kWarpM / 16;  // 16 rows each
  static constexpr int kPiecesN = kWarpN / 16;  // 16 columns each
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0 && kBlockN % kChannelGroup == 0);
  // The largest tile has no registers left for both ways of the epilogue.
  static constexpr bool kSimpleTiles = kPiecesM * kPiecesN <= 16;
  // A warp with half a channel group shares it with its neighbour.
  static constexpr bool kHalfGroup = kWarpN % kChannelGroup != 0;
  static_assert(!kHalfGroup || kWarpsN == 2);

  static TFQ_DEVICE int warp_row() { return simt::warp_index() / kWarpsN * kWarpM; }
  static TFQ_DEVICE int piece_row(int piece) { return warp_row() + 16 * piece; }

  // First column (in the tile) of a warp's piece. Pieces 2q and 2q + 1 are a whole channel group;
  // the last piece may be half a group.
  static TFQ_DEVICE int piece_column(int piece) {
    const int warp = simt::warp_index() % kWarpsN;
    if (!kHalfGroup) return warp * kWarpN + 16 * piece;
    if (piece == kPiecesN - 1) return warp == 0 ? kWarpN - 16 : kWarpN;
    return warp * (kWarpN + 16) + 16 * piece;
  }

  // All threads of the block multiply; after the product its stages are scratch.
  static TFQ_DEVICE constexpr uint32_t scratch() { return 0; }
  static TFQ_DEVICE int thread() { return simt::thread_index(); }
  static TFQ_DEVICE void sync() { simt::sync_block(); }
};

template <typename Shape>
TFQ_DEVICE void multiply_stage(uint32_t stage, Accumulators<Shape>& acc) {
  const int lane = simt::lane_index();
  const int a_row = Shape::warp_row() + lane % 16;
  const int b_row = lane / 16 * 8 + lane % 8;
  const uint32_t b_stage = stage + Shape::kBlockM * kBlockK;
#pragma unroll
  for (int step = 0; step < 2; ++step) {  // of depth 32
    uint32_t a[Shape::kPiecesM][4];
#pragma unroll
    for (int i = 0; i < Shape::kPiecesM; ++i)
      ptx::load_matrix_x4(a[i], stage + chunk_offset(a_row, 2 * step + lane / 16) +
                                    static_cast<uint32_t>(i * 16 * kBlockK));
#pragma unroll
    for (int piece = 0; piece < Shape::kPiecesN; ++piece) {
      uint32_t b[4];
      ptx::load_matrix_x4(
          b, b_stage + chunk_offset(b_row, 2 * step + lane / 8 % 2) +
                 static_cast<uint32_t>(Shape::piece_column(piece) * kBlockK));
#pragma unroll
      for (int i = 0; i < Shape::kPiecesM; ++i) {
        ptx::mma_u8s8(acc.value[i][2 * piece], a[i], b[0], b[1]);
        ptx::mma_u8s8(acc.value[i][2 * piece + 1], a[i], b[2], b[3]);
      }
    }
  }
}

TFQ_DEVICE int k_blocks(int depth) { return (depth + kBlockK - 1) / kBlockK; }

// acc = sum over k-blocks [begin, end).
template <typename Shape, typename LoaderA, typename LoaderB>
TFQ_DEVICE void multiply_tile(LoaderA& loader_a, LoaderB& loader_b, int begin, int end,
                              Accumulators<Shape>& acc) {
#pragma unroll
  for (int i = 0; i < Shape::kPiecesM; ++i)
#pragma unroll
    for (int j = 0; j < 2 * Shape::kPiecesN; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) acc.value[i][j][r] = 0;

  const auto queue = [&](int block) {
    if (block < end) {
      const auto stage = static_cast<uint32_t>((block - begin) % Shape::kStages * Shape::kStageBytes);
      loader_a.load(block, stage);
      loader_b.load(block, stage + Shape::kBlockM * kBlockK);
    }
    ptx::commit_copies();  // also an empty group, so that the number to wait for is constant
  };
#pragma unroll
  for (int i = 0; i < Shape::kStages - 1; ++i) queue(begin + i);
  for (int block = begin; block < end; ++block) {
    if (simt::fault(simt::kFaultRefillBeforeBarrier)) queue(block + Shape::kStages - 1);
    ptx::wait_copies<Shape::kStages - 2>();
    if (simt::fault(simt::kFaultReturnBeforeBarrier) && simt::warp_index() == 1) return;
    // After it everybody sees this stage, and everybody has left the one that is refilled.
    if (!simt::fault(simt::kFaultNoBarrierAfterWait)) simt::sync_block();
    if (!simt::fault(simt::kFaultRefillBeforeBarrier)) queue(block + Shape::kStages - 1);
    multiply_stage<Shape>(
        static_cast<uint32_t>((block - begin) % Shape::kStages * Shape::kStageBytes), acc);
  }
  ptx::wait_copies<0>();
}

}  // namespace tfq::cuda

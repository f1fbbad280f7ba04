// Instantiations and launch of the GEMM of sm_90a.
#include "cuda/gemm_s8_sm90.cuh"

#include "cuda/product_launch.h"

namespace tfq::cuda {
namespace {

struct Entry {
  const char* name;
  void (*plain)(const TmaGemmLaunch);
  void (*geglu)(const TmaGemmLaunch);
};

#define TFQ_TILE_NAME(m, n, name, schedule, groups, stages, cluster) \
  "gemm_s8_" #m "x" #n "x128_" #name "_sm90",
constexpr const char* kNames[] = {TFQ_CUDA_TILES_SM90(TFQ_TILE_NAME)};
#undef TFQ_TILE_NAME
template <int Index>
constexpr Entry entry() {
  constexpr int kTile = kTileCountSm80 + Index;
  return {kNames[Index], gemm_s8_sm90<kTile, false>, gemm_s8_sm90<kTile, true>};
}
constexpr Entry kEntries[] = {entry<0>(), entry<1>(), entry<2>(), entry<3>(), entry<4>(),
                              entry<5>(), entry<6>(), entry<7>(), entry<8>(), entry<9>(),
                              entry<10>(), entry<11>()};
static_assert(kTileCountSm80 + sizeof(kEntries) / sizeof(kEntries[0]) == kTileCount);

}  // namespace

void launch_gemm_sm90(const GemmLaunch& product, const SecondSource& second,
                      const ProductProblem& problem, int index, const DeviceFacts& device,
                      void* stream) {
  const Tile& tile = kTiles[index];
  const auto rows = [&](const uint8_t* x, int64_t depth) {
    return matrix_map(x, problem.m, depth, tile.block_m, tile.block_k, Swizzle::k128);
  };
  TmaGemmLaunch args{};
  args.a = rows(product.x, problem.k - second.depth);
  if (second.depth > 0) args.a2 = rows(second.x, second.depth);
  args.b = matrix_map(product.weight, packed_rows(problem.n), packed_depth(problem.k),
                      tile.block_n / tile.cluster, tile.block_k, Swizzle::k128);
  args.k2 = static_cast<int32_t>(second.depth);
  args.product = product;
  const Entry& entry = kEntries[index - kTileCountSm80];
  simt::launch(product.epilogue.activation == Activation::kGeglu ? entry.geglu : entry.plain,
               persistent_config(entry.name, problem, tile, product.split.count, device, stream),
               args);
}

}  // namespace tfq::cuda

// Instantiations and launch of the GEMM.
#include "cuda/gemm_s8_sm80.cuh"

#include "common/check.h"
#include "cuda/product_launch.h"

namespace tfq::cuda {
namespace {

using Kernel = void (*)(const GemmLaunch);

struct Entry {
  const char* name;
  Kernel plain, geglu;
};

#define TFQ_TILE_NAME(m, n, wm, wn, stages, blocks) "gemm_s8_" #m "x" #n "x64_w" #wm "x" #wn "_sm80",
constexpr const char* kNames[] = {TFQ_CUDA_TILES(TFQ_TILE_NAME)};
#undef TFQ_TILE_NAME
constexpr Entry kEntries[] = {
    {kNames[0], gemm_s8_sm80<0, false>, gemm_s8_sm80<0, true>},
    {kNames[1], gemm_s8_sm80<1, false>, gemm_s8_sm80<1, true>},
    {kNames[2], gemm_s8_sm80<2, false>, gemm_s8_sm80<2, true>},
    {kNames[3], gemm_s8_sm80<3, false>, gemm_s8_sm80<3, true>},
    {kNames[4], gemm_s8_sm80<4, false>, gemm_s8_sm80<4, true>},
};
static_assert(sizeof(kEntries) / sizeof(kEntries[0]) == kTileCount);

}  // namespace

void gemm_s8(const GemmArgs& args, const ProductOptions& options, const Launch& launch) {
  if (args.m == 0 || args.n == 0) return;
  check_product("gemm_s8", args.epilogue, args.m, args.n);
  check_aligned("gemm_s8", "x", args.x);
  const ProductProblem problem{args.m, args.n, args.k, options.workspace_size};
  const ProductChoice choice = choose_product("gemm_s8", problem, device_facts(launch.device),
                                              options.tile, options.splits);
  const Tile& tile = kTiles[choice.tile];
  GemmLaunch product =
      product_launch(args.epilogue, options, problem,
                     static_cast<const int8_t*>(args.weight.data), tile, choice.splits);
  product.x = args.x;
  const Entry& entry = kEntries[choice.tile];
  const DeviceGuard guard(launch.device);
  simt::launch(args.epilogue.activation == Activation::kGeglu ? entry.geglu : entry.plain,
               product_config(entry.name, problem, tile, choice.splits, launch.stream), product);
}

}  // namespace tfq::cuda

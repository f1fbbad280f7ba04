// Instantiations and launch of the GEMM of sm_80.
#include "cuda/gemm_s8_sm80.cuh"

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
static_assert(sizeof(kEntries) / sizeof(kEntries[0]) == kTileCountSm80);

}  // namespace

void launch_gemm_sm80(const GemmLaunch& product, const ProductProblem& problem, int index,
                      void* stream) {
  const Entry& entry = kEntries[index];
  simt::launch(
      product.epilogue.activation == Activation::kGeglu ? entry.geglu : entry.plain,
      product_config(entry.name, problem, kTiles[index], product.split.count, stream), product);
}

}  // namespace tfq::cuda

// Instantiations and launch of the convolution of sm_80.
#include "cuda/conv2d_s8_sm80.cuh"

#include "cuda/product_launch.h"

namespace tfq::cuda {
namespace {

struct Entry {
  const char* name;
  void (*kernel)(const ConvLaunch);
};

#define TFQ_TILE_NAME(m, n, wm, wn, stages, blocks) \
  "conv2d_s8_" #m "x" #n "x64_w" #wm "x" #wn "_sm80",
constexpr const char* kNames[] = {TFQ_CUDA_TILES(TFQ_TILE_NAME)};
#undef TFQ_TILE_NAME
constexpr Entry kEntries[] = {
    {kNames[0], conv2d_s8_sm80<0>}, {kNames[1], conv2d_s8_sm80<1>}, {kNames[2], conv2d_s8_sm80<2>},
    {kNames[3], conv2d_s8_sm80<3>}, {kNames[4], conv2d_s8_sm80<4>},
};
static_assert(sizeof(kEntries) / sizeof(kEntries[0]) == kTileCountSm80);

}  // namespace

void launch_conv_sm80(const ConvLaunch& conv, const ProductProblem& problem, int index,
                      void* stream) {
  const Entry& entry = kEntries[index];
  simt::launch(
      entry.kernel,
      product_config(entry.name, problem, kTiles[index], conv.product.split.count, stream), conv);
}

}  // namespace tfq::cuda

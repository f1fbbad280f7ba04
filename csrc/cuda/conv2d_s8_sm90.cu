// Instantiations and launch of the convolution of sm_90a.
#include "cuda/conv2d_s8_sm90.cuh"

#include "cuda/product_launch.h"

namespace tfq::cuda {
namespace {

struct Entry {
  const char* name;
  void (*units_of_64)(const TmaConvLaunch);
  void (*units_of_128)(const TmaConvLaunch);
};

#define TFQ_TILE_NAME(m, n, name, schedule, groups, stages, cluster) \
  "conv2d_s8_" #m "x" #n "x128_" #name "_sm90",
constexpr const char* kNames[] = {TFQ_CUDA_TILES_SM90(TFQ_TILE_NAME)};
#undef TFQ_TILE_NAME
template <int Index>
constexpr Entry entry() {
  constexpr int kTile = kTileCountSm80 + Index;
  return {kNames[Index], conv2d_s8_sm90<kTile, Swizzle::k64>, conv2d_s8_sm90<kTile, Swizzle::k128>};
}
constexpr Entry kEntries[] = {entry<0>(), entry<1>(), entry<2>(), entry<3>(), entry<4>(),
                              entry<5>(), entry<6>(), entry<7>(), entry<8>(), entry<9>(),
                              entry<10>(), entry<11>()};
static_assert(kTileCountSm80 + sizeof(kEntries) / sizeof(kEntries[0]) == kTileCount);

}  // namespace

void launch_conv_sm90(const ConvLaunch& conv, const int32_t* tap_sums,
                      const ProductProblem& problem, int index, const DeviceFacts& device,
                      void* stream) {
  const Tile& tile = kTiles[index];
  const int64_t batch = problem.m / (int64_t{conv.out_h} * conv.out_w);
  const bool wide = conv.channels % static_cast<int>(Swizzle::k128) == 0;
  const Swizzle unit = wide ? Swizzle::k128 : Swizzle::k64;
  const int unit_bytes = static_cast<int>(unit);
  const TmaConvLaunch args{
      image_map(conv.x, batch, conv.in_h, conv.in_w, conv.channels,
                {conv.out_h, conv.out_w, conv.stride_h, conv.stride_w, conv.pad_top, conv.pad_left},
                tile.block_m, unit_bytes, unit),
      matrix_map(conv.product.weight, packed_rows(problem.n), packed_depth(problem.k),
                 tile.block_n / tile.cluster, unit_bytes, unit),
      tap_sums, conv};
  const Entry& entry = kEntries[index - kTileCountSm80];
  simt::launch(wide ? entry.units_of_128 : entry.units_of_64,
               persistent_config(entry.name, problem, tile, conv.product.split.count,
                                 device, stream),
               args);
}

}  // namespace tfq::cuda

// Instantiations and launch of the convolution.
#include "cuda/conv2d_s8_sm80.cuh"

#include "common/check.h"
#include "cuda/conv_config.h"
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

void conv2d_s8(const ConvArgs& args, const uint8_t* x2, int64_t channels2,
               const ProductOptions& options, const Launch& launch) {
  const ConvGeometry& g = args.geometry;
  const ProductProblem problem = 
      conv_problem(g, channels2, options.workspace_size, options.tap_sums);
  if (problem.m == 0 || problem.n == 0) return;
  check_product("conv2d_s8", args.epilogue, problem.m, problem.n);
  const int64_t group_rows = args.epilogue.rows_per_group;
  TFQ_CHECK(group_rows % (g.out_h * g.out_w) == 0 && args.epilogue.activation != Activation::kGeglu,
            "conv2d_s8: a group must be whole images, and GEGLU is for gemm_s8; got ", group_rows,
            " rows per group for images of ", g.out_h, " x ", g.out_w);
  check_aligned("conv2d_s8", "x", args.x);
  check_aligned("conv2d_s8", "x2", x2);
  const DeviceFacts device = device_facts(launch.device);
  const ProductChoice choice =
      choose_product("conv2d_s8", problem, device, dispatch_table(), options.tile, options.splits);
  const Tile& tile = kTiles[choice.tile];
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  ConvLaunch conv{};
  conv.x = args.x;
  conv.x2 = x2;
  conv.channels = narrow(g.channels);
  conv.channels2 = narrow(channels2);
  conv.in_h = narrow(g.in_h);
  conv.in_w = narrow(g.in_w);
  conv.out_h = narrow(g.out_h);
  conv.out_w = narrow(g.out_w);
  conv.kernel_h = narrow(g.kernel_h);
  conv.kernel_w = narrow(g.kernel_w);
  conv.stride_h = narrow(g.stride_h);
  conv.stride_w = narrow(g.stride_w);
  conv.pad_top = narrow(g.pad_top);
  conv.pad_left = narrow(g.pad_left);
  conv.upsample_shift = g.upsample == 2 ? 1 : 0;
  conv.images_per_qparam = narrow(group_rows / (g.out_h * g.out_w));
  conv.product =
      product_launch(args.epilogue, options, problem,
                     static_cast<const int8_t*>(args.weight.data), tile, choice.splits);
  conv.product.x = args.x;
  const DeviceGuard guard(launch.device);
  if (tile.level == Level::kSm90 && is_matrix(g, channels2)) {
    launch_gemm_sm90(conv.product, problem, choice.tile, device.multiprocessors, launch.stream);
    return;
  }
  if (tile.level == Level::kSm90) {
    launch_conv_sm90(conv, options.tap_sums, problem, choice.tile, device.multiprocessors,
                     launch.stream);
    return;
  }
  const Entry& entry = kEntries[choice.tile];
  simt::launch(entry.kernel,
               product_config(entry.name, problem, tile, choice.splits, launch.stream), conv);
}

}  // namespace tfq::cuda

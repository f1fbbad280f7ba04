// The GEMM: checks, the choice of a tile, and the launch of that tile's kernel.
#include "common/check.h"
#include "cuda/product_launch.h"

namespace tfq::cuda {

void gemm_s8(const GemmArgs& args, const ProductOptions& options, const Launch& launch) {
  if (args.m == 0 || args.n == 0) return;
  check_product("gemm_s8", args.epilogue, args.m, args.n);
  check_aligned("gemm_s8", "x", args.x);
  check_aligned("gemm_s8", "weight", args.weight.data);
  const ProductProblem problem{args.m, args.n, args.k, options.workspace_size};
  const DeviceFacts device = device_facts(launch.device);
  const ProductChoice choice =
      choose_product("gemm_s8", problem, device, dispatch_table(), options.tile, options.splits);
  const Tile& tile = kTiles[choice.tile];
  GemmLaunch product =
      product_launch(args.epilogue, options, problem, static_cast<const int8_t*>(args.weight.data),
                     tile, choice.splits);
  product.x = args.x;
  const DeviceGuard guard(launch.device);
  if (tile.level == Level::kSm90) {
    launch_gemm_sm90(product, {}, problem, choice.tile, device, launch.stream);
  } else {
    launch_gemm_sm80(product, problem, choice.tile, launch.stream);
  }
}

}  // namespace tfq::cuda

// The convolution: checks, the choice of a tile, and the launch of that tile's kernel.
#include "common/check.h"
#include "common/conv_geometry.h"
#include "cuda/conv_config.h"
#include "cuda/product_launch.h"

namespace tfq::cuda {
namespace {

ConvLaunch conv_launch(const ConvGeometry& g, int64_t channels2, int64_t group_rows) {
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  ConvLaunch conv{};
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
  return conv;
}

}  // namespace

int64_t enlarged_bytes(const ConvGeometry& geometry, int64_t channels2, int device) {
  if (geometry.upsample == 1 || !device_facts(device).wgmma) return 0;
  const ConvGeometry large = enlarged(geometry);
  const bool copied = *conv_problem(large, channels2, 0, true).not_copied == '\0';
  return copied ? large.batch * large.in_h * large.in_w * large.channels : 0;
}

void conv2d_s8(const ConvArgs& args, const uint8_t* x2, int64_t channels2,
               const ProductOptions& options, const Launch& launch) {
  const ConvGeometry g = options.enlarged ? enlarged(args.geometry) : args.geometry;
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
  check_aligned("conv2d_s8", "the enlarged image", options.enlarged);
  const DeviceFacts device = device_facts(launch.device);
  const ProductChoice choice =
      choose_product("conv2d_s8", problem, device, dispatch_table(), options.tile, options.splits);
  const Tile& tile = kTiles[choice.tile];
  ConvLaunch conv = conv_launch(g, channels2, group_rows);
  conv.product =
      product_launch(args.epilogue, options, problem,
                     static_cast<const int8_t*>(args.weight.data), tile, choice.splits);
  const DeviceGuard guard(launch.device);
  if (options.enlarged) enlarge_images(args.geometry, args.x, options.enlarged, launch);
  conv.x = conv.product.x = options.enlarged ? options.enlarged : args.x;
  conv.x2 = x2;
  if (tile.level == Level::kSm80) {
    launch_conv_sm80(conv, problem, choice.tile, launch.stream);
  } else if (is_pointwise(g)) {
    launch_gemm_sm90(conv.product, {x2, channels2}, problem, choice.tile, device, launch.stream);
  } else {
    launch_conv_sm90(conv, options.tap_sums, problem, choice.tile, device, launch.stream);
  }
}

}  // namespace tfq::cuda

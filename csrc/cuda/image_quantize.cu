// Launches of quantize and group_norm_silu_quantize.
#include "cuda/image_quantize.cuh"

#include "common/math.h"
#include "cuda/bandwidth.h"

namespace tfq::cuda {
namespace {


void run_image_kernel(const char* name, void (*kernel)(const ImageLaunch), int64_t blocks,
                      int64_t batch, uint32_t threads, const ImageLaunch& args,
                      const Launch& launch) {
  simt::launch(kernel,
               bandwidth_config(
                   name, {static_cast<uint32_t>(blocks), static_cast<uint32_t>(batch), 1}, threads, 0,
                   launch),
               args);
}

// The last passes: the range where it is not given, and quantisation.
void quantize_images(const char* operation, const ImageLaunch& args, int64_t batch,
                     const Launch& launch) {
  const int64_t runs = int64_t{args.pixels} * (args.total() / kImageRun);
  narrow(operation, runs + kImageThreads * kRunsPerThread);  // item numbers are 32 bits wide
  const int64_t blocks = ceil_div(runs, kImageThreads * kRunsPerThread);
  if (args.dynamic_qparams) {
    run_image_kernel("clear_ranges", clear_ranges, 1, batch, 32, args, launch);
    run_image_kernel("image_range", image_range, blocks, batch, kImageThreads, args, launch);
  }
  run_image_kernel("image_quantize", image_quantize, blocks, batch, kImageThreads, args, launch);
}

}  // namespace

int64_t image_workspace(int64_t batch, int64_t pixels, int64_t channels) {
  return batch * ((3 * ceil_div(pixels, kChunkPixels) + 2) * channels + 2);
}

void quantize(const QuantizeArgs& args, float* workspace, const Launch& launch) {
  if (args.groups == 0 || args.group_size == 0) return;
  if (quantize_as_rows(args.group_size)) {
    quantize_rows(args, launch);
    return;
  }
  check_run("quantize", "the size of a group", args.group_size);
  check_address("quantize", "x", args.x);
  check_address("quantize", "out", args.out);
  TFQ_CHECK(args.groups <= kMaxGridY, "quantize: at most ", kMaxGridY, " groups of ",
            args.group_size, " values, got ", args.groups);
  ImageLaunch images{};
  images.x = args.x;
  images.x_dtype = args.x_dtype;
  images.pixels = 1;
  images.channels = narrow("quantize", args.group_size);
  images.qparams = args.qparams;
  images.dynamic_qparams = args.dynamic_qparams;
  images.ranges = reinterpret_cast<int32_t*>(workspace);
  images.out = args.out;
  const DeviceGuard guard(launch.device);
  quantize_images("quantize", images, args.groups, launch);
}

void group_norm_silu_quantize(const GroupNormArgs& args, float* workspace, const Launch& launch) {
  const char* name = "group_norm_silu_quantize";
  if (args.batch == 0) return;
  TFQ_CHECK(args.pixels > 0, name, ": images must have pixels");
  check_run(name, "channels", args.channels);
  if (args.x2) check_run(name, "channels of the second source", args.channels2);
  check_address(name, "x", args.x);
  check_address(name, "x2", args.x2);
  check_address(name, "out", args.out);
  TFQ_CHECK(args.batch <= kMaxGridY, name, ": at most ", kMaxGridY, " images, got ", args.batch);
  ImageLaunch images{};
  images.x = args.x;
  images.x2 = args.x2;
  images.x_dtype = args.x_dtype;
  images.pixels = narrow(name, args.pixels);
  images.channels = narrow(name, args.channels);
  images.channels2 = args.x2 ? narrow(name, args.channels2) : 0;
  images.num_groups = narrow(name, args.num_groups);
  images.eps = args.eps;
  images.silu = args.silu;
  images.weight = args.weight;
  images.bias = args.bias;
  images.affine_stride = args.affine_stride;
  images.qparams = args.qparams;
  images.dynamic_qparams = args.dynamic_qparams;
  images.partials = workspace;
  images.coefficients = workspace + args.batch * images.chunks() * 3 * images.total();
  images.ranges =
      reinterpret_cast<int32_t*>(images.coefficients + args.batch * 2 * images.total());
  images.out = args.out;
  const DeviceGuard guard(launch.device);
  const int64_t items = int64_t{images.chunks()} * (images.total() / kImageRun);
  run_image_kernel("group_norm_statistics", group_norm_statistics, ceil_div(items, kImageThreads),
                   args.batch, kImageThreads, images, launch);
  run_image_kernel("group_norm_coefficients", group_norm_coefficients,
                   ceil_div(args.num_groups, kImageThreads / simt::kWarpSize), args.batch,
                   kImageThreads, images, launch);
  quantize_images(name, images, args.batch, launch);
}

}  // namespace tfq::cuda

#include "cuda/product_launch.h"

#include <algorithm>

#include "common/check.h"
#include "common/math.h"
#include "cuda/overlap.h"

namespace tfq::cuda {
namespace {

constexpr uintptr_t kVectorBytes = 16;

}  // namespace

void check_aligned(const char* operation, const char* name, const void* address) {
  TFQ_CHECK(reinterpret_cast<uintptr_t>(address) % kVectorBytes == 0, operation, ": ", name,
            " must begin at a multiple of ", kVectorBytes, " bytes, got address ", address,
            declined_by_all_tiles());
}

void check_product(const char* operation, const Epilogue& e, int64_t m, int64_t n) {
  const bool geglu = e.activation == Activation::kGeglu;
  const bool requantizes = e.out_dtype == DType::kUInt8 || e.quantized_out;
  TFQ_CHECK(m > 0 && n > 0, operation, ": m and n must be positive, got ", m, " and ", n);
  const int64_t run = geglu ? 2 * kRunChannels : kRunChannels;
  TFQ_CHECK(n % run == 0, operation, ": n must be a multiple of ", run, ", got ", n,
            declined_by_all_tiles());
  TFQ_CHECK(!geglu || !e.residual, operation, ": GEGLU cannot have a residual");
  TFQ_CHECK(!requantizes || e.requant.data, operation, ": a uint8 output needs its parameters");
  TFQ_CHECK(!(e.out_dtype == DType::kUInt8 && e.quantized_out), operation,
            ": a second output needs a float first one");
  TFQ_CHECK(e.rows_per_group < (int64_t{1} << 31) && e.rows_per_sample < (int64_t{1} << 31),
            operation, ": rows per group and per sample must be below 2^31, got ", e.rows_per_group,
            " and ", e.rows_per_sample);
  check_aligned(operation, "weight_scale", e.weight_scale);
  check_aligned(operation, "weight_sum", e.weight_sum);
  check_aligned(operation, "bias", e.bias);
  check_aligned(operation, "residual", e.residual);
  check_aligned(operation, "out", e.out);
  check_aligned(operation, "the second output", e.quantized_out);
}

GemmLaunch product_launch(const Epilogue& e, const ProductOptions& options,
                          const ProductProblem& problem, const int8_t* weight, const Tile& tile,
                          int splits) {
  GemmLaunch launch{};
  launch.weight = weight;
  launch.m = static_cast<int32_t>(problem.m);
  launch.n = static_cast<int32_t>(problem.n);
  launch.k = static_cast<int32_t>(problem.k);
  const int64_t tiles = ceil_div(problem.m, tile.block_m) * ceil_div(problem.n, tile.block_n);
  launch.split = {splits, options.workspace + tiles, options.workspace};
  launch.epilogue = e;
  return launch;
}

simt::LaunchConfig product_config(const char* kernel, const ProductProblem& problem,
                                  const Tile& tile, int splits, void* stream) {
  const int64_t tiles = ceil_div(problem.m, tile.block_m) * ceil_div(problem.n, tile.block_n);
  TFQ_CHECK(tiles * splits < (int64_t{1} << 31), kernel, ": ", tiles * splits,
            " tiles are more than a grid holds");
  return {kernel,
          {static_cast<uint32_t>(tiles), 1, static_cast<uint32_t>(splits)},
          static_cast<uint32_t>(tile.threads()),
          static_cast<uint32_t>(tile.shared_bytes()),
          stream};
}

simt::LaunchConfig persistent_config(const char* kernel, const ProductProblem& problem,
                                     const Tile& tile, int splits, const DeviceFacts& device,
                                     void* stream) {
  simt::LaunchConfig config = product_config(kernel, problem, tile, splits, stream);
  const int64_t parts = clusters_of(problem, tile) * splits;
  const int64_t at_once = std::max(device.multiprocessors / tile.cluster, 1);
  config.cluster = static_cast<uint32_t>(tile.cluster);
  config.overlaps = launches_overlap(device);
  config.grid = {static_cast<uint32_t>(std::min(parts, at_once)) * config.cluster, 1, 1};
  return config;
}

}  // namespace tfq::cuda

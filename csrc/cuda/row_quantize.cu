// Launches of quantize (short groups), layer_norm_quantize and geglu_quantize.
#include "cuda/row_quantize.cuh"

#include "cuda/bandwidth.h"

namespace tfq::cuda {
namespace {

constexpr int kLongRow = 1024;  // not measured on a card yet

struct Kernels {
  const char* name;
  void (*warp)(const RowLaunch);
  void (*block)(const RowLaunch);
};

void launch_rows(const Kernels& kernels, const RowLaunch& args, const Launch& launch) {
  check_run(kernels.name, "channels", args.channels);
  check_address(kernels.name, "x", args.x);
  check_address(kernels.name, "weight", args.weight);
  check_address(kernels.name, "bias", args.bias);
  check_address(kernels.name, "out", args.out);
  const bool block = args.channels > kLongRow;
  const int rows = block ? 1 : kRowWarps;
  const int64_t shared = kReductionBytes + int64_t{4} * rows * args.channels;
  const int available = device_facts(launch.device).shared_per_block;
  TFQ_CHECK(shared <= available, kernels.name, ": ", args.channels, " channels need ", shared,
            " bytes of shared memory, a block has ", available);
  const DeviceGuard guard(launch.device);
  simt::launch(block ? kernels.block : kernels.warp,
               bandwidth_config(kernels.name,
                                {static_cast<uint32_t>((args.rows + rows - 1) / rows), 1, 1},
                                kRowThreads, static_cast<uint32_t>(shared), launch),
               args);
}

template <RowOperation Operation>
constexpr Kernels kernels_of(const char* name) {
  return {name, row_quantize<Operation, 1>, row_quantize<Operation, kRowWarps>};
}

}  // namespace

bool quantize_as_rows(int64_t group_size) { return group_size <= kLongRow; }

void quantize_rows(const QuantizeArgs& args, const Launch& launch) {
  RowLaunch rows{};
  rows.x = args.x;
  rows.x_dtype = args.x_dtype;
  rows.rows = narrow("quantize", args.groups);
  rows.channels = narrow("quantize", args.group_size);
  rows.qparams = args.qparams;
  rows.rows_per_group = 1;
  rows.dynamic_qparams = args.dynamic_qparams;
  rows.out = args.out;
  launch_rows(kernels_of<RowOperation::kNone>("quantize"), rows, launch);
}

void layer_norm_quantize(const LayerNormArgs& args, const Launch& launch) {
  if (args.rows == 0) return;
  RowLaunch rows{};
  rows.x = args.x;
  rows.x_dtype = args.x_dtype;
  rows.rows = narrow("layer_norm_quantize", args.rows);
  rows.channels = narrow("layer_norm_quantize", args.channels);
  rows.eps = args.eps;
  rows.weight = args.weight;
  rows.bias = args.bias;
  rows.qparams = args.qparams;
  rows.rows_per_group = narrow("layer_norm_quantize", args.rows_per_group);
  rows.dynamic_qparams = args.dynamic_qparams;
  rows.out = args.out;
  launch_rows(kernels_of<RowOperation::kLayerNorm>("layer_norm_quantize"), rows, launch);
}

void geglu_quantize(const GegluArgs& args, const Launch& launch) {
  if (args.rows == 0) return;
  RowLaunch rows{};
  rows.x = args.x;
  rows.x_dtype = args.x_dtype;
  rows.rows = narrow("geglu_quantize", args.rows);
  rows.channels = narrow("geglu_quantize", args.channels);
  rows.qparams = args.qparams;
  rows.rows_per_group = narrow("geglu_quantize", args.rows_per_group);
  rows.dynamic_qparams = args.dynamic_qparams;
  rows.out = args.out;
  launch_rows(kernels_of<RowOperation::kGeglu>("geglu_quantize"), rows, launch);
}

}  // namespace tfq::cuda

// Launch of dequantize_weight.
#include "cuda/dequantize_weight.cuh"

#include "cuda/bandwidth.h"

namespace tfq::cuda {

void dequantize_weight(const DequantizeWeightArgs& args, const Launch& launch) {
  constexpr const char* kName = "dequantize_weight";
  check_address(kName, "packed", args.weight.data);
  check_address(kName, "out", args.out);
  const int64_t panels = cpu::packed_panels(narrow(kName, args.n));
  const int64_t k_blocks = cpu::packed_k(narrow(kName, args.k)) / cpu::kBlockK;
  const int32_t tiles = narrow(kName, panels * k_blocks);
  if (tiles == 0) return;
  const DeviceGuard guard(launch.device);
  simt::launch(dequantize_weight_runs,
               bandwidth_config(kName,
                                {static_cast<uint32_t>(ceil_div(int64_t{kTileRuns} * tiles,
                                                                kDequantizeThreads)),
                                 1, 1},
                                kDequantizeThreads, 0, launch),
               {args, static_cast<int32_t>(k_blocks), tiles});
}

}  // namespace tfq::cuda

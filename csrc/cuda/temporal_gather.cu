// Launches of temporal_gather and temporal_gather_dequantize.
#include "cuda/temporal_gather.cuh"

#include "common/math.h"
#include "cuda/bandwidth.h"

namespace tfq::cuda {
namespace {

template <typename Args>
void launch_gather(void (*kernel)(const Args), const char* name, const Args& args,
                   const Launch& launch) {
  if (args.count == 0 || args.width == 0) return;
  TFQ_CHECK(args.count <= kMaxGridY, "temporal_gather: at most ", kMaxGridY, " rows, got ",
            args.count);
  const DeviceGuard guard(launch.device);
  simt::launch(kernel,
               bandwidth_config(name,
                                {static_cast<uint32_t>(ceil_div(
                                     narrow("temporal_gather", args.width), kGatherThreads)),
                                 static_cast<uint32_t>(args.count), 1},
                                kGatherThreads, 0, launch),
               args);
}

}  // namespace

void temporal_gather(const TemporalGatherArgs& args, const Launch& launch) {
  launch_gather(temporal_gather_rows, "temporal_gather", args, launch);
}

void temporal_gather_dequantize(const TemporalDequantizeArgs& args, const Launch& launch) {
  TFQ_CHECK(args.features > 0 || args.width == 0,
            "temporal_gather: a table of width ", args.width, " has no features");
  launch_gather(temporal_gather_dequantize_rows, "temporal_gather_dequantize", args, launch);
}

}  // namespace tfq::cuda

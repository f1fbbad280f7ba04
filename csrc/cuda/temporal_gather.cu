// Launch of temporal_gather.
#include "cuda/temporal_gather.cuh"

#include "cuda/bandwidth.h"

namespace tfq::cuda {

void temporal_gather(const TemporalGatherArgs& args, const QuantizedTable& quantized,
                     const Launch& launch) {
  constexpr int64_t kMaxCount = 65535;
  if (args.count == 0 || args.width == 0) return;
  TFQ_CHECK(args.count <= kMaxCount, "temporal_gather: at most ", kMaxCount, " rows, got ",
            args.count);
  const GatherLaunch gather{args.table,
                            quantized,
                            args.table_rows,
                            narrow("temporal_gather", args.width),
                            args.rows,
                            args.out};
  const DeviceGuard guard(launch.device);
  simt::launch(temporal_gather_rows,
               {"temporal_gather",
                {static_cast<uint32_t>((args.width + kGatherThreads - 1) / kGatherThreads),
                 static_cast<uint32_t>(args.count), 1},
                kGatherThreads,
                0,
                launch.stream},
               gather);
}

}  // namespace tfq::cuda

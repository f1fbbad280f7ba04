#include "cpu/temporal_gather/temporal_gather.h"

#include <cstring>

#include "common/check.h"

namespace tfq::cpu {

void temporal_gather(const TemporalGatherArgs& args) {
  for (int64_t i = 0; i < args.count; ++i)
    TFQ_CHECK(args.rows[i] >= 0 && args.rows[i] < args.table_rows,
              "temporal_gather: rows must be in [0, ", args.table_rows, "), got rows[", i,
              "] = ", args.rows[i]);
  const size_t row_bytes = static_cast<size_t>(args.width) * sizeof(float);
  if (row_bytes == 0) return;
  for (int64_t i = 0; i < args.count; ++i)
    std::memcpy(args.out + i * args.width, args.table + args.rows[i] * args.width, row_bytes);
}

}  // namespace tfq::cpu

#include "cpu/temporal_gather/temporal_gather.h"

#include <cstring>

#include "common/check.h"
#include "common/math.h"
#include "common/parallel.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kTaskElements = 65536;  // some 10 us of work

void check_rows(const int64_t* rows, int64_t count, int64_t table_rows) {
  for (int64_t i = 0; i < count; ++i)
    TFQ_CHECK(rows[i] >= 0 && rows[i] < table_rows, "temporal_gather: rows must be in [0, ",
              table_rows, "), got rows[", i, "] = ", rows[i]);
}

void check_offsets(const int64_t* offsets, int64_t features, int64_t width) {
  TFQ_CHECK(offsets[0] == 0, "temporal_gather: offsets must begin with 0, got ", offsets[0]);
  for (int64_t i = 1; i <= features; ++i)
    TFQ_CHECK(offsets[i] >= offsets[i - 1], "temporal_gather: offsets must not fall, got offsets[",
              i, "] = ", offsets[i], " after ", offsets[i - 1]);
  TFQ_CHECK(offsets[features] == width, "temporal_gather: offsets must end with the table's width ",
            width, ", got ", offsets[features]);
}

}  // namespace

void temporal_gather(const TemporalGatherArgs& args) {
  check_rows(args.rows, args.count, args.table_rows);
  const size_t row_bytes = static_cast<size_t>(args.width) * sizeof(float);
  if (row_bytes == 0) return;
  for (int64_t i = 0; i < args.count; ++i)
    std::memcpy(args.out + i * args.width, args.table + args.rows[i] * args.width, row_bytes);
}

void temporal_gather_dequantize(const TemporalDequantizeArgs& args) {
  check_rows(args.rows, args.count, args.table_rows);
  check_offsets(args.offsets, args.features, args.width);
  const temporal_gather_kernel& kernel = select_temporal_gather(active_level());
  const int64_t rows_per_task = max_of(1, kTaskElements / max_of(1, args.width));
  parallel_for(ceil_div(args.count, rows_per_task), [&](int64_t task) {
    const int64_t end = min_of(args.count, (task + 1) * rows_per_task);
    for (int64_t i = task * rows_per_task; i < end; ++i) {
      const uint8_t* row = args.table + args.rows[i] * args.width;
      const float* qparams = args.qparams + args.rows[i] * args.features * 2;
      for (int64_t f = 0; f < args.features; ++f) {
        const int64_t first = args.offsets[f];
        kernel.dequantize(row + first, args.offsets[f + 1] - first, qparams[2 * f],
                          qparams[2 * f + 1], args.out + i * args.width + first);
      }
    }
  });
}

}  // namespace tfq::cpu

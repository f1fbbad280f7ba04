#include "cpu/quantize/quantize.h"

#include "common/check.h"
#include "common/math.h"
#include "common/parallel.h"
#include "common/quant.h"
#include "cpu/element_type.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

// Values per task: 256 KiB of float32, so that the second pass of a dynamic group reads L2.
constexpr int64_t kTaskElements = 65536;
constexpr int kRangeSlot = 0;

struct Job {
  const QuantizeArgs& args;
  const quantize_kernel& kernel;
  int64_t pieces_per_group;
  int64_t groups_per_task;
  float* ranges;  // (groups, pieces_per_group, 2) when a dynamic group has several pieces

  const void* at(int64_t group, int64_t first) const {
    return element_at(args.x, args.x_dtype, group * args.group_size + first);
  }

  void quantize_piece(int64_t group, int64_t first, int64_t count) const {
    const float* qparams = args.dynamic_qparams ? args.dynamic_qparams + group * kQParamsWidth
                                                : args.qparams.data + group * args.qparams.stride;
    kernel.quantize(at(group, first), args.x_dtype, count, qparams[1], qparams[2],
                    args.out + group * args.group_size + first);
  }

  void whole_groups(int64_t task) const {
    const int64_t end = min_of(args.groups, (task + 1) * groups_per_task);
    for (int64_t group = task * groups_per_task; group < end; ++group) {
      if (args.dynamic_qparams) {
        float range[2] = {0.0f, 0.0f};
        kernel.range(at(group, 0), args.x_dtype, args.group_size, range);
        qparams_from_range(range[0], range[1], args.dynamic_qparams + group * kQParamsWidth);
      }
      quantize_piece(group, 0, args.group_size);
    }
  }

  void range_of_piece(int64_t piece) const {
    const int64_t first = piece % pieces_per_group * kTaskElements;
    float* range = ranges + 2 * piece;
    range[0] = range[1] = 0.0f;
    kernel.range(at(piece / pieces_per_group, first), args.x_dtype,
                 min_of(kTaskElements, args.group_size - first), range);
  }

  void qparams_of_group(int64_t group) const {
    float low = 0.0f, high = 0.0f;
    const float* range = ranges + 2 * group * pieces_per_group;
    for (int64_t i = 0; i < pieces_per_group; ++i) {
      if (range[2 * i] < low) low = range[2 * i];
      if (range[2 * i + 1] > high) high = range[2 * i + 1];
    }
    qparams_from_range(low, high, args.dynamic_qparams + group * kQParamsWidth);
  }

  void one_piece(int64_t piece) const {
    const int64_t first = piece % pieces_per_group * kTaskElements;
    quantize_piece(piece / pieces_per_group, first, min_of(kTaskElements, args.group_size - first));
  }
};

}  // namespace

void quantize(const QuantizeArgs& args) {
  TFQ_CHECK(args.groups >= 0 && args.group_size >= 0,
            "quantize: sizes must not be negative, got groups ", args.groups, " and group_size ",
            args.group_size);
  Job job{args, select_quantize(active_level()), ceil_div(args.group_size, kTaskElements),
          max_of(1, kTaskElements / max_of(1, args.group_size)), nullptr};
  if (job.pieces_per_group <= 1) {
    parallel_for(ceil_div(args.groups, job.groups_per_task),
                 [&job](int64_t i) { job.whole_groups(i); });
    return;
  }
  const int64_t pieces = args.groups * job.pieces_per_group;
  if (args.dynamic_qparams) {
    const size_t range_bytes = static_cast<size_t>(2 * pieces) * sizeof(float);
    job.ranges = static_cast<float*>(thread_scratch(kRangeSlot, range_bytes));
    parallel_for(pieces, [&job](int64_t i) { job.range_of_piece(i); });
    for (int64_t group = 0; group < args.groups; ++group) job.qparams_of_group(group);
  }
  parallel_for(pieces, [&job](int64_t i) { job.one_piece(i); });
}

}  // namespace tfq::cpu

#include "cpu/norm_act/row_quantize.h"

#include "common/math.h"
#include "common/parallel.h"
#include "common/quant.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kTaskElements = 16384;  // some 10 us of work
constexpr int kRowSlot = 2;

struct Job {
  int64_t rows, channels, rows_per_task;
  const RowQuantization& quantization;
  const std::function<void(int64_t, int64_t, float*)>& compute;
  const quantize_kernel& kernel;

  const float* qparams_of_row(int64_t row, const float* y) const {
    const RowQuantization& q = quantization;
    if (!q.dynamic_qparams) return q.qparams.data + row / q.rows_per_group * q.qparams.stride;
    float range[2] = {0.0f, 0.0f};
    kernel.range(y, DType::kFloat32, channels, range);
    float* qparams = q.dynamic_qparams + row * kQParamsWidth;
    qparams_from_range(range[0], range[1], qparams);
    return qparams;
  }

  void run(int64_t task) const {
    auto* y = static_cast<float*>(
        thread_scratch(kRowSlot, static_cast<size_t>(kRowBatch * channels) * sizeof(float)));
    const int64_t end = min_of(rows, (task + 1) * rows_per_task);
    for (int64_t row = task * rows_per_task; row < end; row += kRowBatch) {
      const int64_t count = min_of(kRowBatch, end - row);
      compute(row, count, y);
      for (int64_t i = 0; i < count; ++i) {
        const float* y_row = y + i * channels;
        const float* qparams = qparams_of_row(row + i, y_row);
        kernel.quantize(y_row, DType::kFloat32, channels, qparams[1], qparams[2],
                        quantization.out + (row + i) * channels);
      }
    }
  }
};

}  // namespace

void quantize_rows(int64_t rows, int64_t channels, const RowQuantization& quantization,
                   const std::function<void(int64_t, int64_t, float*)>& compute) {
  const int64_t rows_per_task = round_up(max_of(1, kTaskElements / max_of(1, channels)), kRowBatch);
  const Job job{rows,         channels, rows_per_task,
                quantization, compute,  select_quantize(active_level())};
  parallel_for(ceil_div(rows, rows_per_task), [&job](int64_t task) { job.run(task); });
}

}  // namespace tfq::cpu

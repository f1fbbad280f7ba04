#include "cpu/gemm_s8/schedule.h"

#include "common/math.h"

namespace tfq::cpu {
namespace {

// A task's rows of the left operand (gathered once, then read for every block of columns) stay in half
// of a 1 MiB L2 with room for the weights streaming past. Not calibrated.
constexpr int64_t kRowBlockBytes = 256 * 1024;
// Tasks per thread that even out unequal progress of the cores.
constexpr int64_t kTasksPerThread = 2;

int64_t split(int64_t size, int64_t step, int64_t parts) {
  return min_of(size, round_up(ceil_div(size, parts), step));
}

}  // namespace

GemmSchedule schedule_gemm(int64_t m, int64_t n, int64_t k, int64_t block_rows, int64_t block_columns,
                           int64_t threads) {
  const int64_t cache_rows = max_of(block_rows, kRowBlockBytes / max_of(k, 1) / block_rows * block_rows);
  GemmSchedule schedule{min_of(m, cache_rows), n};
  const int64_t wanted = threads * kTasksPerThread;
  if (threads == 1 || ceil_div(m, schedule.task_rows) >= wanted) return schedule;
  // Too few row tasks. Splitting columns makes each thread gather the same rows; splitting rows makes
  // each read the same weights: duplicate the smaller operand.
  if (m < n) {
    schedule.task_columns = split(n, block_columns, wanted / ceil_div(m, schedule.task_rows));
  } else {
    schedule.task_rows = split(m, block_rows, wanted);
  }
  return schedule;
}

}  // namespace tfq::cpu

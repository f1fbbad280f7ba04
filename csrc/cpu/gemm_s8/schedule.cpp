#include "cpu/gemm_s8/schedule.h"

#include "common/math.h"

namespace tfq::cpu {
namespace {

// Bytes of the left operand a task gathers once and then reads for every block of columns. Where
// the weights fit half of L2 they stay there, and an eighth for the rows is enough; larger ones
// stream in from beyond L2 once per task, so rows take half of it. Calibrated on a Xeon with AMX
// and 2 MiB of L2 (one thread, CPU time): 640 channels at 32x32 1.45 -> 2.1 TOP/s with the large
// share, 128 channels at 32x32 1.6 -> 1.2 TOP/s if it were used there too.
constexpr int64_t kSmallRowShare = 8;
constexpr int64_t kLargeRowShare = 2;
// Share of L2 for the weights of a group of columns.
constexpr int64_t kGroupShare = 4;
// Tasks per thread that even out unequal progress of the cores.
constexpr int64_t kTasksPerThread = 2;

int64_t split(int64_t size, int64_t step, int64_t parts) {
  return min_of(size, round_up(ceil_div(size, parts), step));
}

}  // namespace

GemmSchedule schedule_gemm(int64_t m, int64_t n, int64_t k, int64_t row_bytes, int64_t least_rows,
                           const GemmMachine& machine) {
  const int64_t block_rows = machine.block_rows, threads = machine.threads;
  const bool weights_stay = n * k <= machine.l2_bytes / 2;
  const int64_t rows_share = machine.l2_bytes / (weights_stay ? kSmallRowShare : kLargeRowShare);
  const int64_t fitting = rows_share / max_of(row_bytes, 1);
  const int64_t cache_rows =
      max_of(round_up(least_rows, block_rows), fitting / block_rows * block_rows);
  const int64_t fitting_columns = machine.l2_bytes / kGroupShare / max_of(k, 1);
  const int64_t group_columns = max_of(
      machine.block_columns, fitting_columns / machine.block_columns * machine.block_columns);
  GemmSchedule schedule{min_of(m, cache_rows), n, group_columns};
  const int64_t wanted = threads * kTasksPerThread;
  if (threads == 1 || ceil_div(m, schedule.task_rows) >= wanted) return schedule;
  // Too few row tasks. Splitting columns makes each thread gather the same rows; splitting rows
  // makes each read the same weights: duplicate the smaller operand.
  if (m < n || ceil_div(m, wanted) < least_rows) {
    schedule.task_columns =
        split(n, machine.block_columns, wanted / ceil_div(m, schedule.task_rows));
  } else {
    schedule.task_rows = split(m, block_rows, wanted);
  }
  return schedule;
}

}  // namespace tfq::cpu

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

// Multiply-adds in whose time a task reads a byte of an operand it shares with others. Measured on
// Zen 4, two threads, 256x5120->1280: 4 x 1 tasks 856 GOP/s, 3 x 2 tasks 890.
constexpr int64_t kReadCost = 8;

int64_t split(int64_t size, int64_t step, int64_t parts) {
  return min_of(size, round_up(ceil_div(size, parts), step));
}

// A task, and the time of the busiest thread: multiply-adds for each value of k.
struct Candidate {
  int64_t rows, columns, time;
};

Candidate candidate(int64_t m, int64_t n, int64_t row_parts, int64_t column_parts,
                    const GemmMachine& machine) {
  const int64_t rows = split(m, machine.block_rows, row_parts);
  const int64_t columns = split(n, machine.block_columns, column_parts);
  const int64_t tasks = ceil_div(m, rows) * ceil_div(n, columns);
  // A block of fewer rows or columns takes no less time.
  const int64_t products =
      round_up(rows, machine.block_rows) * round_up(columns, machine.block_columns);
  return {rows, columns,
          ceil_div(tasks, machine.threads) * (products + kReadCost * (rows + columns))};
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
  const int64_t fewest = ceil_div(m, cache_rows);  // parts of the rows
  const int64_t wanted = threads == 1 ? 1 : threads * kTasksPerThread;
  Candidate best = candidate(m, n, fewest, 1, machine);
  for (int64_t row_parts = fewest; row_parts <= fewest + wanted; ++row_parts) {
    if (row_parts > fewest && m < row_parts * least_rows) break;
    // As many parts of the columns as give each thread enough tasks, and equally many.
    for (int64_t column_parts = ceil_div(wanted, row_parts);; ++column_parts) {
      const Candidate next = candidate(m, n, row_parts, column_parts, machine);
      if (next.time < best.time) best = next;
      if (row_parts * column_parts % threads == 0) break;
    }
  }
  return {best.rows, best.columns, group_columns};
}

}  // namespace tfq::cpu

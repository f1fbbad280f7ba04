// How a product is cut into tasks: a pure function of the problem, the kernel's block and the
// threads.
#pragma once

#include <cstdint>

namespace tfq::cpu {

// Rows of a task that make up for reading int8 weights that lie beyond L2. Measured on Zen 3 with
// 512 KiB of L2, where half of L2 holds fewer rows of such depths: k = 17,280 104 -> 125 GOP/s,
// k = 23,040 87 -> 118.
constexpr int64_t kRowsPerRead = 32;

struct GemmSchedule {
  int64_t task_rows;     // multiple of the kernel's rows, or all rows
  int64_t task_columns;  // multiple of the kernel's columns, or all columns
  // A task runs through its columns in groups, and through all its rows for each group. A group's
  // weights stay in L2 meanwhile, and each row of the output grows by a whole group at a time.
  int64_t group_columns;
};

struct GemmMachine {
  int64_t block_rows, block_columns;  // of the kernel
  int64_t threads;
  int64_t l2_bytes;  // of one core
};

// `row_bytes`: what a row of the left operand takes in the cache. `least_rows`: rows that make up
// for what a task does once per weight; fewer only where m is less.
GemmSchedule schedule_gemm(int64_t m, int64_t n, int64_t k, int64_t row_bytes, int64_t least_rows,
                           const GemmMachine& machine);

}  // namespace tfq::cpu

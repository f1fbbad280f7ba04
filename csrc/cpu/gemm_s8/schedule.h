// How a product is cut into tasks: a pure function of the problem, the kernel's block and the
// threads.
#pragma once

#include <cstdint>

namespace tfq::cpu {

struct GemmSchedule {
  int64_t task_rows;     // multiple of the kernel's rows, or all rows
  int64_t task_columns;  // multiple of the kernel's columns, or all columns
  // Order of the blocks in a task. Rows outermost finishes whole rows of the output, which the
  // memory system likes; columns outermost reads each weight once, for weights that do not stay in
  // L2.
  bool rows_outermost;
};

struct GemmMachine {
  int64_t block_rows, block_columns;  // of the kernel
  int64_t threads;
  int64_t l2_bytes;  // of one core
};

GemmSchedule schedule_gemm(int64_t m, int64_t n, int64_t k, const GemmMachine& machine);

}  // namespace tfq::cpu

// How a product is cut into tasks: a pure function of the problem, the kernel's block and the threads.
#pragma once

#include <cstdint>

namespace tfq::cpu {

struct GemmSchedule {
  int64_t task_rows;     // multiple of the kernel's rows, or all rows
  int64_t task_columns;  // multiple of the kernel's columns, or all columns
};

GemmSchedule schedule_gemm(int64_t m, int64_t n, int64_t k, int64_t block_rows, int64_t block_columns,
                           int64_t threads);

}  // namespace tfq::cpu

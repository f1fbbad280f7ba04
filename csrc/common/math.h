// Integer helpers. Internal linkage: included by files of every instruction set.
#pragma once

#include <cstdint>

namespace tfq {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace tfq

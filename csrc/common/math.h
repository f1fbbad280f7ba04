// Helpers of integers, and of rounding to them. Internal linkage: included by files of every
// instruction set.
#pragma once

#include <cstdint>

namespace tfq {

// 1.5 * 2^23: added to a float below 2^22 it rounds to an integer, to nearest even, which then stands
// in the low bits of the sum; subtracted again, it leaves that integer as a float.
constexpr float kRoundToInteger = 12582912.0f;
constexpr int32_t kRoundToIntegerBits = 0x4B400000;

constexpr float kLog2E = 1.44269504f;
constexpr float kSmallestNormal = 1.17549435e-38f;

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace tfq

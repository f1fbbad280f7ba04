// wgmma (PTX ISA 9.7.15) of every width that wgmma_ceiling.cu times, of those the kernels do not use too, with
// a from shared memory or from registers: d (64, N) = (d if `accumulate`) + a (64, 32) u8 times the transpose
// of b (N, 32) s8.
#pragma once

#include "cuda/ptx_sm90.cuh"

namespace wgmma {

using tfq::ptx::Sums;

#define SUMS2(j) "+r"(d[j][0]), "+r"(d[j][1]), "+r"(d[j][2]), "+r"(d[j][3]), \
                 "+r"(d[(j) + 1][0]), "+r"(d[(j) + 1][1]), "+r"(d[(j) + 1][2]), "+r"(d[(j) + 1][3])
#define SUMS4(j) SUMS2(j), SUMS2(j + 2)
#define SUMS8(j) SUMS4(j), SUMS4(j + 4)
#define NAMES8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define NAMES32                                                                                   \
  NAMES8(0, 1, 2, 3, 4, 5, 6, 7) "," NAMES8(8, 9, 10, 11, 12, 13, 14, 15) ","                     \
  NAMES8(16, 17, 18, 19, 20, 21, 22, 23) "," NAMES8(24, 25, 26, 27, 28, 29, 30, 31)
#define NAMES64                                                                                   \
  NAMES32 "," NAMES8(32, 33, 34, 35, 36, 37, 38, 39) "," NAMES8(40, 41, 42, 43, 44, 45, 46, 47)   \
  "," NAMES8(48, 49, 50, 51, 52, 53, 54, 55) "," NAMES8(56, 57, 58, 59, 60, 61, 62, 63)
#define NAMES80                                                                                   \
  NAMES64 "," NAMES8(64, 65, 66, 67, 68, 69, 70, 71) "," NAMES8(72, 73, 74, 75, 76, 77, 78, 79)
#define NAMES96                                                                                   \
  NAMES80 "," NAMES8(80, 81, 82, 83, 84, 85, 86, 87) "," NAMES8(88, 89, 90, 91, 92, 93, 94, 95)
#define NAMES128                                                                                  \
  NAMES96 "," NAMES8(96, 97, 98, 99, 100, 101, 102, 103)                                          \
  "," NAMES8(104, 105, 106, 107, 108, 109, 110, 111)                                              \
  "," NAMES8(112, 113, 114, 115, 116, 117, 118, 119)                                              \
  "," NAMES8(120, 121, 122, 123, 124, 125, 126, 127)

// Of N columns; o0 to o5 are the numbers of the operands after the sums.
#define WGMMA(N, NAMES, o0, o1, o2, o3, o4, o5, ...)                                              \
  TFQ_DEVICE void multiply_add(Sums<N>& d, uint64_t a, uint64_t b, bool accumulate) {             \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #o2 ", 0;\n"                          \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.u8.s8 {" NAMES "}, %" #o0        \
                 ", %" #o1 ", keep;\n}"                                                           \
                 : __VA_ARGS__                                                                    \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                            \
  }                                                                                               \
  TFQ_DEVICE void multiply_add(Sums<N>& d, const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #o5 ", 0;\n"                          \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.u8.s8 {" NAMES "}, {%" #o0       \
                 ",%" #o1 ",%" #o2 ",%" #o3 "}, %" #o4 ", keep;\n}"                               \
                 : __VA_ARGS__                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                            \
                   "r"(static_cast<int>(accumulate)));                                            \
  }

WGMMA(64, NAMES32, 32, 33, 34, 35, 36, 37, SUMS8(0))
WGMMA(128, NAMES64, 64, 65, 66, 67, 68, 69, SUMS8(0), SUMS8(8))
WGMMA(160, NAMES80, 80, 81, 82, 83, 84, 85, SUMS8(0), SUMS8(8), SUMS4(16))
WGMMA(192, NAMES96, 96, 97, 98, 99, 100, 101, SUMS8(0), SUMS8(8), SUMS8(16))
WGMMA(256, NAMES128, 128, 129, 130, 131, 132, 133, SUMS8(0), SUMS8(8), SUMS8(16), SUMS8(24))

#undef WGMMA
#undef NAMES128
#undef NAMES96
#undef NAMES80
#undef NAMES64
#undef NAMES32
#undef NAMES8
#undef SUMS8
#undef SUMS4
#undef SUMS2

}  // namespace wgmma

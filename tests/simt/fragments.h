// Which element of a matrix each register of each lane holds. The emulated instructions use these
// maps; tests compare them with oracle/fragments.tsv, which comes from CuTe's own layouts.
#pragma once

#include <cstdint>

namespace tfq::simt {

struct Coordinate {
  int row, column;
};

// mma.m16n8k32, 8-bit: byte `byte` of register `reg` of lane `lane`. A is (16, 32), B is held as
// (n = 8, k = 32), the accumulator is (16, 8).
constexpr Coordinate mma_a(int lane, int reg, int byte) {
  return {lane / 4 + 8 * (reg % 2), 16 * (reg / 2) + 4 * (lane % 4) + byte};
}
constexpr Coordinate mma_b(int lane, int reg, int byte) {
  return {lane / 4, 16 * reg + 4 * (lane % 4) + byte};
}
constexpr Coordinate mma_c(int lane, int reg) {
  return {lane / 4 + 8 * (reg / 2), 2 * (lane % 4) + reg % 2};
}

// ldmatrix.x4: byte `byte` of register `reg` of lane `lane` is byte `column` of row `row` of the 32
// rows of 16 bytes whose addresses the lanes supply.
constexpr Coordinate ldmatrix_x4(int lane, int reg, int byte) {
  return {8 * reg + lane / 4, 4 * (lane % 4) + byte};
}

// wgmma.m64nNk32: register `reg` of thread `thread` of the warpgroup in the accumulator (64, N).
constexpr Coordinate wgmma_c(int thread, int reg) {
  const int lane = thread % 32;
  return {16 * (thread / 32) + lane / 4 + 8 * (reg / 2 % 2),
          8 * (reg / 4) + 2 * (lane % 4) + reg % 2};
}

// Where the byte at `address` of shared memory lies under the swizzle of `row` bytes (128, 64, 32):
// the 16-byte chunk within 128 bytes is changed by the bits above.
constexpr uint32_t swizzled(uint32_t address, int row) {
  return address ^ ((address >> 7 & (static_cast<uint32_t>(row) / 16 - 1)) << 4);
}

}  // namespace tfq::simt

// The instructions of csrc/cuda/ptx.cuh on a CPU, bit for bit, with the two approximate functions
// rounded correctly instead. Meant to be included by ptx.cuh alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/quant.h"
#include "fragments.h"
#include "half.h"
#include "matrix_host.h"

namespace tfq::ptx {

using simt::kWarpSize;

struct alignas(16) Vector4 {
  uint32_t word[4];
};

inline void copy_async(uint32_t shared_offset, const void* source, bool valid) {
  simt::queue_copy(shared_offset, valid ? source : nullptr);
}
inline void commit_copies() { simt::commit_copies(); }
template <int GroupsLeft>
void wait_copies() {
  simt::wait_copies(GroupsLeft + (simt::fault(simt::kFaultWaitOneGroupTooFew) ? 1 : 0));
}

struct LoadMatrix {
  uint32_t* registers;
  uint32_t offset;
};

// Rows of 16 bytes that lie in the same of the eight groups of four banks cost a cycle each.
inline void count_conflicts(const LoadMatrix* const* lanes, int matrix) {
  int rows_in_group[8] = {}, most = 0;
  for (int row = 0; row < 8; ++row)
    most = std::max(most, ++rows_in_group[lanes[8 * matrix + row]->offset / 16 % 8]);
  simt::counters().ldmatrix_phases += 1;
  simt::counters().ldmatrix_conflicts += static_cast<uint64_t>(most - 1);
}

inline void load_matrix_x4(uint32_t (&registers)[4], uint32_t shared_offset) {
  LoadMatrix payload{registers, shared_offset};
  if (shared_offset % 16) simt::fail("ldmatrix needs addresses that are multiples of 16");
  simt::warp_collective("ldmatrix.x4", &payload, [](void* const* payloads) {
    const auto* lanes = reinterpret_cast<const LoadMatrix* const*>(payloads);
    const unsigned char* rows[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane)
      rows[lane] = simt::shared_bytes(lanes[lane]->offset, 16);
    for (int matrix = 0; matrix < 4; ++matrix) count_conflicts(lanes, matrix);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int reg = 0; reg < 4; ++reg) {
        const simt::Coordinate first = simt::ldmatrix_x4(lane, reg, 0);
        std::memcpy(&lanes[lane]->registers[reg], rows[first.row] + first.column, 4);
      }
    }
  });
}

struct Mma {
  int32_t* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <bool UnsignedA>
void multiply(void* const* payloads) {
  constexpr int kRows = 16, kColumns = 8, kDepth = 32;
  int16_t a[kRows][kDepth], b[kColumns][kDepth];
  int32_t c[kRows][kColumns];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(payloads[lane]);
    for (int byte = 0; byte < 4; ++byte) {
      for (int reg = 0; reg < 4; ++reg) {
        const simt::Coordinate at = simt::mma_a(lane, reg, byte);
        const auto value = static_cast<uint8_t>(mma.a[reg] >> (8 * byte));
        a[at.row][at.column] = UnsignedA ? value : static_cast<int8_t>(value);
      }
      for (int reg = 0; reg < 2; ++reg) {
        const simt::Coordinate at = simt::mma_b(lane, reg, byte);
        b[at.row][at.column] = static_cast<int8_t>(mma.b[reg] >> (8 * byte));
      }
    }
    for (int reg = 0; reg < 4; ++reg) {
      const simt::Coordinate at = simt::mma_c(lane, reg);
      c[at.row][at.column] = mma.c[reg];
    }
  }
  simt::multiply_add(&c[0][0], &a[0][0], &b[0][0], kRows, kColumns, kDepth);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    Mma& mma = *static_cast<Mma*>(payloads[lane]);
    for (int reg = 0; reg < 4; ++reg) {
      const simt::Coordinate at = simt::mma_c(lane, reg);
      mma.c[reg] = c[at.row][at.column];
    }
  }
}

inline void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma payload{c, a, {b0, b1}};
  simt::warp_collective("mma.u8.s8", &payload, multiply<true>);
}
inline void mma_s8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma payload{c, a, {b0, b1}};
  simt::warp_collective("mma.s8.s8", &payload, multiply<false>);
}

// The card's NaN is 0x7fff in both formats.
inline uint32_t pack_bf16(float low, float high) {
  const auto half = [](float x) { return x != x ? 0x7fffu : uint32_t{float_to_bf16(x)}; };
  return half(low) | half(high) << 16;
}
inline uint32_t pack_fp16(float low, float high) {
  const auto half = [](float x) { return x != x ? 0x7fffu : uint32_t{float_to_fp16(x)}; };
  return half(low) | half(high) << 16;
}
inline float fp16_to_float(uint16_t half) { return tfq::fp16_to_float(half); }

inline int32_t round_to_int(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return std::numeric_limits<int32_t>::max();
  if (x < -2147483648.0f) return std::numeric_limits<int32_t>::min();
  return static_cast<int32_t>(std::nearbyint(x));
}
inline float min_nan(float a, float b) {
  if (a != a || b != b) return std::numeric_limits<float>::quiet_NaN();
  return a < b ? a : b;
}
inline float max_number(float a, float b) { return std::fmax(a, b); }
inline uint32_t pack_low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
}
inline uint32_t pack_u8(int32_t a, int32_t b, int32_t c, int32_t d) {
  const auto byte = [](int32_t x) { return static_cast<uint32_t>(std::clamp(x, 0, 255)); };
  return byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
}
inline float exp2_approx(float x) { return static_cast<float>(std::exp2(static_cast<double>(x))); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float erf_approx(float x) { return std::erf(x); }
inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

template <typename T>
struct Shuffle {
  T value, result;
  int mask;
};
template <typename T>
T shuffle_xor(T value, int mask) {
  Shuffle<T> payload{value, value, mask};
  simt::warp_collective("shfl.bfly", &payload, [](void* const* payloads) {
    const auto* lanes = reinterpret_cast<Shuffle<T>* const*>(payloads);
    for (int lane = 0; lane < kWarpSize; ++lane)
      lanes[lane]->result = lanes[lane ^ lanes[lane]->mask]->value;
  });
  return payload.result;
}

inline void wait_for_launches() { simt::wait_for_launches(); }
inline void let_next_begin() {}

inline void atomic_add(int32_t* address, int32_t value) { *address += value; }
inline int32_t atomic_increment(int32_t* address) { return (*address)++; }
inline void atomic_min(int32_t* address, int32_t value) { *address = std::min(*address, value); }
inline void atomic_max(int32_t* address, int32_t value) { *address = std::max(*address, value); }
inline void memory_fence() {}
inline int32_t load_past_l1(const int32_t* address) { return *address; }

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float quiet_nan() { return std::numeric_limits<float>::quiet_NaN(); }
inline float minus_infinity() { return -std::numeric_limits<float>::infinity(); }
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

}  // namespace tfq::ptx

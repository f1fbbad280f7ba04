// The instructions of sm_80 the kernels use, one function each; sections are those of the PTX ISA
// manual, version 9.0. The host bodies are in tests/simt/ptx_host.h.
#pragma once

#include "cuda/simt.h"

#ifdef TFQ_SIMT_HOST

#include "ptx_host.h"

#else

namespace tfq::ptx {

using simt::kWarpSize;

// Four words, as one 16-byte access.
struct alignas(16) Vector4 {
  uint32_t word[4];
};

TFQ_DEVICE uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(simt::shared_at<unsigned char>(offset)));
}

// cp.async (9.7.9.25.3): 16 bytes from global to shared memory, past L1; zeros when not `valid`.
TFQ_DEVICE void copy_async(uint32_t shared_offset, const void* source, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared_offset)),
               "l"(__cvta_generic_to_global(source)), "r"(bytes)
               : "memory");
}

TFQ_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most GroupsLeft of the calling thread's groups are under way.
template <int GroupsLeft>
TFQ_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsLeft) : "memory");
}

// ldmatrix (9.7.14.5.15): four 8x8 matrices of 16-bit elements; lane i supplies the address of row
// i % 8 of matrix i / 8.
TFQ_DEVICE void load_matrix_x4(uint32_t (&registers)[4], uint32_t shared_offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(shared_offset))
               : "memory");
}

// mma (9.7.14.5.14): c (16, 8) += a (16, 32) times the transpose of b (8, 32), u8 x s8 -> s32.
TFQ_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for s8 x s8.
TFQ_DEVICE void mma_s8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// cvt.rn.bf16x2.f32 and cvt.rn.f16x2.f32 (9.7.9.22): `low` in bits 0-15.
TFQ_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
TFQ_DEVICE uint32_t pack_fp16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
TFQ_DEVICE float fp16_to_float(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

// cvt.rni.s32.f32: to nearest even, saturating, NaN -> 0.
TFQ_DEVICE int32_t round_to_int(float x) {
  int32_t value;
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(value) : "f"(x));
  return value;
}

// min.NaN.f32 (9.7.3.11): NaN if either operand is.
TFQ_DEVICE float min_nan(float a, float b) {
  float value;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(value) : "f"(a), "f"(b));
  return value;
}

// max.f32 (9.7.3.12): the other operand if one is NaN.
TFQ_DEVICE float max_number(float a, float b) {
  float value;
  asm("max.f32 %0, %1, %2;" : "=f"(value) : "f"(a), "f"(b));
  return value;
}

// prmt (9.7.9.7): the lowest bytes of four words; that of a in the lowest byte.
TFQ_DEVICE uint32_t pack_low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// cvt.pack.sat.u8.s32.b32 (9.7.9.23): four integers clamped to [0, 255]; a in the lowest byte.
TFQ_DEVICE uint32_t pack_u8(int32_t a, int32_t b, int32_t c, int32_t d) {
  uint32_t high, packed;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(d), "r"(c));
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(b), "r"(a), "r"(high));
  return packed;
}

// ex2.approx (2 ulp) and rcp.approx (1 ulp), 9.7.3.
TFQ_DEVICE float exp2_approx(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
TFQ_DEVICE float reciprocal_approx(float x) {
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
TFQ_DEVICE float erf_approx(float x) { return erff(x); }
TFQ_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// shfl.sync.bfly (9.7.9.6).
template <typename T>
TFQ_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// griddepcontrol (9.7.13.13), of launches that overlap: until all launches before have ended and what
// they wrote is seen; and, by one thread of a block, that the next launch may begin as soon as all
// blocks have said so or ended. Before sm_90 launches do not overlap.
TFQ_DEVICE void wait_for_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
TFQ_DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Atomics on global memory.
TFQ_DEVICE void atomic_add(int32_t* address, int32_t value) { atomicAdd(address, value); }
TFQ_DEVICE int32_t atomic_increment(int32_t* address) { return atomicAdd(address, 1); }
TFQ_DEVICE void atomic_min(int32_t* address, int32_t value) { atomicMin(address, value); }
TFQ_DEVICE void atomic_max(int32_t* address, int32_t value) { atomicMax(address, value); }
TFQ_DEVICE void memory_fence() { __threadfence(); }

// A load that sees what other blocks' atomics wrote.
TFQ_DEVICE int32_t load_past_l1(const int32_t* address) { return __ldcg(address); }

TFQ_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
TFQ_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
TFQ_DEVICE float quiet_nan() { return bits_to_float(0x7fc00000u); }
TFQ_DEVICE float minus_infinity() { return bits_to_float(0xff800000u); }

}  // namespace tfq::ptx

#endif

namespace tfq::ptx {

// The beginning of a kernel that has nothing to do before its operands are there. The next launch may
// come at once: it begins where there is room, when all blocks of this one have begun.
TFQ_DEVICE void begin_kernel() {
  if (!simt::fault(simt::kFaultBeginBeforeLaunches)) wait_for_launches();
  let_next_begin();
}

}  // namespace tfq::ptx

// Every exact instruction of csrc/cuda/ptx.cuh on fixed inputs, one line of hexadecimal words each.
// Built with nvcc it says what the card does, built for the host what the emulation does; a test
// compares the lines (tests/gpu/test_conformance.py).
#include <cstdio>

#include "common/api.h"
#include "common/quant.h"
#include "cuda/elements.cuh"
#include "conformance.h"

namespace {

using namespace tfq;

constexpr int kWords = 1 << 14;

struct Probe {
  uint32_t* out;
  const uint32_t* in;
};

TFQ_KERNEL copies_and_matrices(TFQ_GRID_CONSTANT const Probe p) {
  const int lane = simt::lane_index();
  ptx::copy_async(static_cast<uint32_t>(16 * lane), p.in + 4 * lane, lane % 5 != 0);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  simt::sync_block();
  uint32_t registers[4];
  ptx::load_matrix_x4(registers, static_cast<uint32_t>(16 * ((lane * 7 + 3) % 32)));
  for (int i = 0; i < 4; ++i) p.out[4 * lane + i] = registers[i];
}

template <bool UnsignedA>
TFQ_KERNEL multiplies(TFQ_GRID_CONSTANT const Probe p) {
  const int lane = simt::lane_index();
  uint32_t a[4], b[2];
  int32_t c[4];
  for (int i = 0; i < 4; ++i) a[i] = p.in[4 * lane + i];
  for (int i = 0; i < 2; ++i) b[i] = p.in[256 + 2 * lane + i];
  for (int i = 0; i < 4; ++i) c[i] = static_cast<int32_t>(p.in[512 + 4 * lane + i]);
  if constexpr (UnsignedA) {
    ptx::mma_u8s8(c, a, b[0], b[1]);
  } else {
    ptx::mma_s8s8(c, a, b[0], b[1]);
  }
  for (int i = 0; i < 4; ++i) p.out[4 * lane + i] = static_cast<uint32_t>(c[i]);
}

// Words as floats: all exponents, NaN, infinities.
TFQ_KERNEL conversions(TFQ_GRID_CONSTANT const Probe p) {
  for (int i = simt::thread_index(); i < kWords / 10; i += simt::block_size()) {
    const float x = ptx::bits_to_float(p.in[2 * i]), y = ptx::bits_to_float(p.in[2 * i + 1]);
    uint32_t* out = p.out + 10 * i;
    out[0] = ptx::pack_bf16(x, y);
    out[1] = ptx::pack_fp16(x, y);
    out[2] = static_cast<uint32_t>(ptx::round_to_int(x));
    const float least = ptx::min_nan(x, y);
    out[3] = least != least ? 0x7fffffffu : ptx::float_to_bits(least);
    out[4] = ptx::pack_u8(static_cast<int32_t>(p.in[2 * i]), static_cast<int32_t>(p.in[2 * i + 1]),
                          static_cast<int32_t>(p.in[2 * i]) >> 20, 77);
    const float half = ptx::fp16_to_float(static_cast<uint16_t>(p.in[2 * i]));
    out[5] = half != half ? 0x7fffffffu : ptx::float_to_bits(half);
    const float fused = ptx::fused_multiply_add(x, y, 1.0f);
    out[6] = fused != fused ? 0x7fffffffu : ptx::float_to_bits(fused);
    const float four[4] = {x, y, 0.01f * y, 2.5f};
    out[7] = cuda::quantize4(four, 0.37f, static_cast<float>(i % 256));
    const float most = ptx::max_number(x, y);
    out[8] = most != most ? 0x7fffffffu : ptx::float_to_bits(most);
    out[9] = ptx::pack_low_bytes(p.in[2 * i], p.in[2 * i + 1], p.in[i], ~p.in[2 * i]);
  }
}

TFQ_KERNEL shuffles(TFQ_GRID_CONSTANT const Probe p) {
  for (int mask = 1, i = 0; mask < simt::kWarpSize; mask *= 2, ++i)
    p.out[32 * i + simt::lane_index()] =
        ptx::shuffle_xor(p.in[simt::lane_index()], mask);
}

TFQ_KERNEL atomics(TFQ_GRID_CONSTANT const Probe p) {
  auto* out = reinterpret_cast<int32_t*>(p.out);
  const auto value = static_cast<int32_t>(p.in[simt::thread_index()]);
  ptx::atomic_add(out, value);
  ptx::atomic_min(out + 1, value);
  ptx::atomic_max(out + 2, value);
  ptx::atomic_increment(out + 3);
}

void probe(const char* name, void (*kernel)(const Probe), uint32_t threads, int words,
           const Probe& p) {
  for (int i = 0; i < kWords; ++i) p.out[i] = 0;
  simt::launch(kernel, {name, {1, 1, 1}, threads, 1024, nullptr}, p);
  finish();
  std::printf("%s", name);
  for (int i = 0; i < words; ++i) std::printf(" %08x", p.out[i]);
  std::printf("\n");
}

}  // namespace

int main() {
  auto* in = static_cast<uint32_t*>(allocate(kWords * sizeof(uint32_t)));
  auto* out = static_cast<uint32_t*>(allocate(kWords * sizeof(uint32_t)));
  for (uint32_t i = 0; i < kWords; ++i) {
    uint32_t x = i + 1;
    x *= 0x9e3779b9u;
    x ^= x >> 15;
    in[i] = x * 0x85ebca6bu;
  }
  const uint32_t special[] = {0x7fc00000u, 0x7f800000u, 0xff800000u, 0x80000000u,
                              0x477fefffu, 0x477ff000u, 0x33000000u, 0x33000001u};
  for (uint32_t i = 0; i < 8; ++i) in[3 * i] = special[i];
  const Probe p{out, in};
  probe("copies_and_matrices", copies_and_matrices, 32, 128, p);
  probe("mma_u8s8", multiplies<true>, 32, 128, p);
  probe("mma_s8s8", multiplies<false>, 32, 128, p);
  probe("conversions", conversions, 128, kWords, p);
  probe("shuffles", shuffles, 32, 160, p);
  probe("atomics", atomics, 64, 4, p);
  return 0;
}

// Block kernel, AVX-512 VNNI: up to 6 rows x 64 columns.
//
// One VPDPBUSD adds four u8 x s8 products to each of 16 int32 lanes without saturation (Intel SDM
// volume 2, VPDPBUSD; latency 5, two a cycle on ports 0 and 5). Per quad of k: 4 loads of weights
// and 6 broadcasts feed 24 products, so 10 loads in 12 cycles leave the load ports idle half of the
// time, and 24 accumulators hide the latency twice over. Registers: 24 accumulators, 4 weights, 1
// broadcast.
#include <immintrin.h>

#include <cstring>

#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"

#ifndef __AVX512VNNI__
#error "gemm_s8/avx512vnni.cpp needs -mavx512vnni (cmake/TfqIsa.cmake)"
#endif

namespace tfq::cpu {
namespace {

constexpr int kRows = 6;
constexpr int kPanels = 4;

template <int Rows, int Panels>
struct Sums {
  __m512i i32x16[Rows][Panels];
};

// The pragmas matter: without them GCC keeps the accumulators in memory.
template <int Rows, int Panels>
inline void clear(Sums<Rows, Panels>& acc) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Panels; ++j) acc.i32x16[i][j] = _mm512_setzero_si512();
  }
}

// Adds the products of `bytes` of each row, the i-th at row(i), with as many values of k from b on.
template <int Rows, int Panels, typename Row>
inline const int8_t* multiply(Sums<Rows, Panels>& acc, const Row& row, int64_t bytes,
                              const int8_t* b, int64_t panel_bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kQuad) {
    __m512i b_s8x64[Panels];
#pragma GCC unroll 8
    for (int j = 0; j < Panels; ++j) b_s8x64[j] = _mm512_loadu_si512(b + j * panel_bytes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      int32_t four;
      std::memcpy(&four, row(i) + offset, sizeof four);
      const __m512i a_u8x64 = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int j = 0; j < Panels; ++j)
        acc.i32x16[i][j] = _mm512_dpbusd_epi32(acc.i32x16[i][j], a_u8x64, b_s8x64[j]);
    }
    b += kQuadBytes;
  }
  return b;
}

template <int Rows, int Panels>
inline void store(const Sums<Rows, Panels>& acc, int32_t* out) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Panels; ++j)
      _mm512_store_si512(out + i * (kPanels * kPanelColumns) + j * kPanelColumns, acc.i32x16[i][j]);
  }
}

template <int Rows, int Panels>
struct BlockOf {
  static void dense(const GemmBlock& p) {
    Sums<Rows, Panels> acc;
    clear(acc);
    const auto row = [a = p.a, lda = p.lda](int i) { return a + i * lda; };
    multiply(acc, row, p.quads * kQuad, p.b, p.panel_bytes);
    store(acc, p.acc);
  }

  static void strips(const StripBlock& p) {
    Sums<Rows, Panels> acc;
    clear(acc);
    const uint8_t* a[Rows];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) a[i] = p.rows[i];
    const int8_t* b = p.b;
    for (int64_t strip = 0; strip < p.strips; ++strip) {
      b = multiply(acc, [&a](int i) { return a[i]; }, p.strip_quads * kQuad, b, p.panel_bytes);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) a[i] += p.strip_stride;
    }
    store(acc, p.acc);
  }
};

struct BlockFns {
  void (*dense)(const GemmBlock&);
  void (*strips)(const StripBlock&);
};
template <int Rows, int Panels>
constexpr BlockFns kFns = {BlockOf<Rows, Panels>::dense, BlockOf<Rows, Panels>::strips};
template <int Rows>
constexpr BlockFns kByPanels[kPanels] = {kFns<Rows, 1>, kFns<Rows, 2>, kFns<Rows, 3>,
                                         kFns<Rows, 4>};
constexpr const BlockFns* kByRows[kRows] = {kByPanels<1>, kByPanels<2>, kByPanels<3>,
                                            kByPanels<4>, kByPanels<5>, kByPanels<6>};

void block(const GemmBlock& p) { kByRows[p.rows - 1][p.panels - 1].dense(p); }

void strip_block(const StripBlock& p) { kByRows[p.row_count - 1][p.panels - 1].strips(p); }

}  // namespace

extern const gemm_s8_kernel gemm_s8_6x64_avx512vnni;
const gemm_s8_kernel gemm_s8_6x64_avx512vnni = {
    kRows, kPanels * kPanelColumns, 1, kQuad, nullptr, nullptr, block, block, strip_block};

}  // namespace tfq::cpu

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

// The pragmas matter: without them GCC keeps the accumulators in memory.
template <int Rows, int Panels>
void block_of(const GemmBlock& p) {
  __m512i acc_i32x16[Rows][Panels];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Panels; ++j) acc_i32x16[i][j] = _mm512_setzero_si512();
  }

  const uint8_t* a = p.a;
  const int8_t* b = p.b;
  for (int64_t quad = 0; quad < p.quads; ++quad) {
    __m512i b_s8x64[Panels];
#pragma GCC unroll 8
    for (int j = 0; j < Panels; ++j) b_s8x64[j] = _mm512_loadu_si512(b + j * p.panel_bytes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      int32_t four;
      std::memcpy(&four, a + i * p.lda, sizeof four);
      const __m512i a_u8x64 = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int j = 0; j < Panels; ++j)
        acc_i32x16[i][j] = _mm512_dpbusd_epi32(acc_i32x16[i][j], a_u8x64, b_s8x64[j]);
    }
    a += kQuad;
    b += kPanelColumns * kQuad;
  }

#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Panels; ++j)
      _mm512_store_si512(p.acc + i * (kPanels * kPanelColumns) + j * kPanelColumns,
                         acc_i32x16[i][j]);
  }
}

using BlockFn = void (*)(const GemmBlock&);

template <int Rows>
constexpr BlockFn kByPanels[kPanels] = {block_of<Rows, 1>, block_of<Rows, 2>, block_of<Rows, 3>,
                                        block_of<Rows, 4>};
constexpr const BlockFn* kByRows[kRows] = {kByPanels<1>, kByPanels<2>, kByPanels<3>,
                                           kByPanels<4>, kByPanels<5>, kByPanels<6>};

void block(const GemmBlock& p) { kByRows[p.rows - 1][p.panels - 1](p); }

}  // namespace

extern const gemm_s8_kernel gemm_s8_6x64_avx512vnni;
const gemm_s8_kernel gemm_s8_6x64_avx512vnni = {
    kRows, kPanels * kPanelColumns, 1, kQuad, nullptr, nullptr, block, block};

}  // namespace tfq::cpu

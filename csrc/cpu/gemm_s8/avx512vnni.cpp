// Block kernel, AVX-512 VNNI: up to 6 rows x 64 columns.
//
// One VPDPBUSD adds four u8 x s8 products to each of 16 int32 lanes without saturation (Intel SDM
// volume 2, VPDPBUSD; latency 5, two a cycle on ports 0 and 5). Per quad of k: 4 loads of weights
// and 6 broadcasts feed 24 products, so 10 loads in 12 cycles leave the load ports idle half of the
// time, and 24 accumulators hide the latency twice over. Registers: 24 accumulators, 4 weights, 1
// broadcast.
//
// A last panel of no more than 8 columns (the value of a head of 40 channels) is multiplied in half
// a register: half of the time where the units have 256 bits (Zen 4).
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
constexpr int kHalfPanel = kPanelColumns / 2;

// Sums of Halves / 2 panels; an odd half is in the low lanes of the last.
template <int Rows, int Halves>
struct Sums {
  static constexpr int kCount = (Halves + 1) / 2;
  static constexpr bool is_half(int panel) { return 2 * panel + 1 == Halves; }
  __m512i i32x16[Rows][kCount];
};

// The pragmas matter: without them GCC keeps the accumulators in memory.
template <int Rows, int Halves>
inline void clear(Sums<Rows, Halves>& acc) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < acc.kCount; ++j) acc.i32x16[i][j] = _mm512_setzero_si512();
  }
}

inline __m512i load_half(const int8_t* b) {
  return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
}

inline __m512i multiply_half(__m512i acc, __m512i a, __m512i b) {
  return _mm512_castsi256_si512(_mm256_dpbusd_epi32(
      _mm512_castsi512_si256(acc), _mm512_castsi512_si256(a), _mm512_castsi512_si256(b)));
}

// Adds the products of `bytes` of each row, the i-th at row(i), with as many values of k from b on.
template <int Rows, int Halves, typename Row>
inline const int8_t* multiply(Sums<Rows, Halves>& acc, const Row& row, int64_t bytes,
                              const int8_t* b, int64_t panel_bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kQuad) {
    __m512i b_s8x64[acc.kCount];
#pragma GCC unroll 8
    for (int j = 0; j < acc.kCount; ++j) {
      const int8_t* panel = b + j * panel_bytes;
      b_s8x64[j] = acc.is_half(j) ? load_half(panel) : _mm512_loadu_si512(panel);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      int32_t four;
      std::memcpy(&four, row(i) + offset, sizeof four);
      const __m512i a_u8x64 = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int j = 0; j < acc.kCount; ++j) {
        __m512i& sums = acc.i32x16[i][j];
        sums = acc.is_half(j) ? multiply_half(sums, a_u8x64, b_s8x64[j])
                              : _mm512_dpbusd_epi32(sums, a_u8x64, b_s8x64[j]);
      }
    }
    b += kQuadBytes;
  }
  return b;
}

template <int Rows, int Halves>
inline void store(const Sums<Rows, Halves>& acc, int32_t* out) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < acc.kCount; ++j)
      _mm512_store_si512(out + i * (kPanels * kPanelColumns) + j * kPanelColumns, acc.i32x16[i][j]);
  }
}

template <int Rows, int Halves>
struct BlockOf {
  static void dense(const GemmBlock& p) {
    Sums<Rows, Halves> acc;
    clear(acc);
    const auto row = [a = p.a, lda = p.lda](int i) { return a + i * lda; };
    multiply(acc, row, p.quads * kQuad, p.b, p.panel_bytes);
    store(acc, p.acc);
  }

  static void strips(const StripBlock& p) {
    Sums<Rows, Halves> acc;
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
template <int Rows, int Halves>
constexpr BlockFns kFns = {BlockOf<Rows, Halves>::dense, BlockOf<Rows, Halves>::strips};
template <int Rows>
constexpr BlockFns kByHalves[2 * kPanels] = {kFns<Rows, 1>, kFns<Rows, 2>, kFns<Rows, 3>,
                                             kFns<Rows, 4>, kFns<Rows, 5>, kFns<Rows, 6>,
                                             kFns<Rows, 7>, kFns<Rows, 8>};
constexpr const BlockFns* kByRows[kRows] = {kByHalves<1>, kByHalves<2>, kByHalves<3>,
                                            kByHalves<4>, kByHalves<5>, kByHalves<6>};

const BlockFns& functions(int64_t rows, int64_t columns) {
  return kByRows[rows - 1][ceil_div(columns, kHalfPanel) - 1];
}

void block(const GemmBlock& p) { functions(p.rows, p.columns).dense(p); }

void strip_block(const StripBlock& p) { functions(p.row_count, p.columns).strips(p); }

}  // namespace

extern const gemm_s8_kernel gemm_s8_6x64_avx512vnni;
const gemm_s8_kernel gemm_s8_6x64_avx512vnni = {
    kRows, kPanels * kPanelColumns, 1, kQuad, nullptr, nullptr, block, block, strip_block};

}  // namespace tfq::cpu

// Block kernel, AVX2: up to 6 rows x 64 columns.
//
// VPMADDUBSW would saturate (255 * 127 * 2 > 32,767), so both operands are widened to 16 bits and
// VPMADDWD, which cannot, multiplies pairs (Intel SDM volume 2; two a cycle). A quad of k of 4
// columns becomes one vector of 16 int16; its int32 sums come in pairs per column that are added at
// the end. The rows are widened once per block, into a buffer on the stack a slice of k at a time;
// weights once per 6 rows. Registers: 12 accumulators (6 rows x 8 columns), 2 weights, 1 broadcast,
// 1 product; the 16 columns of a panel are two passes over the slice, and all passes of a block
// share the widened rows. Bound: 26 operations on three vector ports per 192 products.
//
// Weights of 4 bits let VPMADDUBSW multiply bytes: a sum of 8 products is at most 8 * 255 * 15 =
// 30,600, so four quads are added in 16 bits before VPMADDWD by ones widens them. That is 9
// operations for 128 products instead of 16, and nothing to widen before. Registers: 6
// accumulators, 4 weights, 1 of ones, 1 broadcast, 2 sums. Measured on Zen 3 in L1: 124 against 80
// G products/s.
#include <cstring>

#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/simd_avx2.h"

namespace tfq::cpu {
namespace {

constexpr int kRows = 6;
constexpr int64_t kSlice = 1024;    // values of k widened at a time: 12 KiB for 6 rows
constexpr int64_t kStep = 16;       // values of k widened by an instruction
constexpr int64_t kSliceS4 = 2048;  // values of k between two visits of the 4-bit kernel to acc
constexpr int64_t kHalfPanel = kPanelColumns / 2;
constexpr int64_t kColumns = 4 * kPanelColumns;

void widen(const uint8_t* a, int64_t count, int16_t* out) {
  for (int64_t i = 0; i < count; i += kStep) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtepu8_epi16(bytes));
  }
}

// acc += x. As an instruction of its own: of _mm256_add_epi32 GCC 12 makes a copy per sum and
// spills.
void add_to(__m256i& acc, __m256i x) { __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(x)); }

// The pragmas matter: without them GCC keeps the accumulators in memory.
// acc[i][0..7] += widened rows x the 8 columns at b, over `quads` quads of k.
template <int Rows>
void accumulate(const int16_t* a, const int8_t* b, int64_t quads, int32_t* acc) {
  __m256i low_i32x8[Rows], high_i32x8[Rows];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) low_i32x8[i] = high_i32x8[i] = _mm256_setzero_si256();
  for (int64_t quad = 0; quad < quads; ++quad) {
    const auto* columns = reinterpret_cast<const __m128i*>(b + quad * kPanelColumns * kQuad);
    const __m256i b_low_s16x16 = _mm256_cvtepi8_epi16(_mm_loadu_si128(columns));
    const __m256i b_high_s16x16 = _mm256_cvtepi8_epi16(_mm_loadu_si128(columns + 1));
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      long long four;
      std::memcpy(&four, a + i * kSlice + quad * kQuad, sizeof four);
      const __m256i a_s16x16 = _mm256_set1_epi64x(four);
      add_to(low_i32x8[i], _mm256_madd_epi16(a_s16x16, b_low_s16x16));
      add_to(high_i32x8[i], _mm256_madd_epi16(a_s16x16, b_high_s16x16));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    // hadd leaves columns (0 1 4 5 | 2 3 6 7): restore the order of the 64-bit pairs.
    const __m256i pairs = _mm256_hadd_epi32(low_i32x8[i], high_i32x8[i]);
    const __m256i sums = _mm256_permute4x64_epi64(pairs, 0xd8);
    auto* out = reinterpret_cast<__m256i*>(acc + i * kColumns);
    _mm256_store_si256(out, _mm256_add_epi32(_mm256_load_si256(out), sums));
  }
}

// The first quad of the half panel that begins with `column`.
const int8_t* half_panel(const GemmBlock& p, int64_t column) {
  return p.b + column / kPanelColumns * p.panel_bytes + column % kPanelColumns * kQuad;
}

template <int Rows>
void block_of(const GemmBlock& p) {
  alignas(32) int16_t a[Rows * kSlice];
  std::memset(p.acc, 0, sizeof(int32_t) * Rows * kColumns);
  for (int64_t first = 0; first < p.quads; first += kSlice / kQuad) {
    const int64_t quads = min_of(p.quads - first, kSlice / kQuad);
    for (int i = 0; i < Rows; ++i)
      widen(p.a + i * p.lda + first * kQuad, quads * kQuad, a + i * kSlice);
    for (int64_t column = 0; column < p.columns; column += kHalfPanel)
      accumulate<Rows>(a, half_panel(p, column) + first * kQuadBytes, quads, p.acc + column);
  }
}

using BlockFn = void (*)(const GemmBlock&);
constexpr BlockFn kByRows[kRows] = {block_of<1>, block_of<2>, block_of<3>,
                                    block_of<4>, block_of<5>, block_of<6>};

void block(const GemmBlock& p) { kByRows[p.rows - 1](p); }

__m256i multiply_quad(const uint8_t* a, __m256i b_s8x32) {
  int32_t four;
  std::memcpy(&four, a, sizeof four);
  return _mm256_maddubs_epi16(_mm256_set1_epi32(four), b_s8x32);
}

// acc[i][0..7] += rows x the 8 columns at b, over `quads` quads of k, a multiple of 4.
template <int Rows>
void accumulate_s4(const uint8_t* a, int64_t lda, const int8_t* b, int64_t quads, int32_t* acc) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums_i32x8[Rows];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) sums_i32x8[i] = _mm256_setzero_si256();
  for (int64_t quad = 0; quad < quads; quad += 4) {
    __m256i b_s8x32[4];
#pragma GCC unroll 8
    for (int j = 0; j < 4; ++j)
      b_s8x32[j] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + (quad + j) * kQuadBytes));
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const uint8_t* row = a + i * lda + quad * kQuad;
      const __m256i low =
          _mm256_add_epi16(multiply_quad(row, b_s8x32[0]), multiply_quad(row + kQuad, b_s8x32[1]));
      const __m256i high = _mm256_add_epi16(multiply_quad(row + 2 * kQuad, b_s8x32[2]),
                                            multiply_quad(row + 3 * kQuad, b_s8x32[3]));
      add_to(sums_i32x8[i], _mm256_madd_epi16(_mm256_add_epi16(low, high), ones));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    auto* out = reinterpret_cast<__m256i*>(acc + i * kColumns);
    _mm256_store_si256(out, _mm256_add_epi32(_mm256_load_si256(out), sums_i32x8[i]));
  }
}

template <int Rows>
void block_s4_of(const GemmBlock& p) {
  std::memset(p.acc, 0, sizeof(int32_t) * Rows * kColumns);
  for (int64_t first = 0; first < p.quads; first += kSliceS4 / kQuad) {
    const int64_t quads = min_of(p.quads - first, kSliceS4 / kQuad);
    for (int64_t column = 0; column < p.columns; column += kHalfPanel) {
      accumulate_s4<Rows>(p.a + first * kQuad, p.lda, half_panel(p, column) + first * kQuadBytes,
                          quads, p.acc + column);
    }
  }
}

constexpr BlockFn kByRowsS4[kRows] = {block_s4_of<1>, block_s4_of<2>, block_s4_of<3>,
                                      block_s4_of<4>, block_s4_of<5>, block_s4_of<6>};

void block_s4(const GemmBlock& p) { kByRowsS4[p.rows - 1](p); }

}  // namespace

extern const gemm_s8_kernel gemm_s8_6x64_avx2;
const gemm_s8_kernel gemm_s8_6x64_avx2 = {kRows,   kColumns, 1,        kStep,  nullptr,
                                          nullptr, block,    block_s4, nullptr};

}  // namespace tfq::cpu

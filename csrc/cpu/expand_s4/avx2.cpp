// Expansion of 4-bit weights, AVX2: a quad of 16 columns, 64 values, a step. A load, five
// operations of one cycle (two masks, a shift, two subtractions) and two stores, which are the
// limit.
#include "cpu/expand_s4/expand_s4.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/simd_avx2.h"

namespace tfq::cpu {
namespace {

// The 8 zero-points at z, each four times: of the values of a quad of 8 columns.
__m256i zero_points_of_quad(const uint8_t* z) {
  const __m128i z_u8x8 = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(z));
  return _mm256_mullo_epi32(_mm256_cvtepu8_epi32(z_u8x8), _mm256_set1_epi32(0x01010101));
}

void expand(const uint8_t* packed, const uint8_t* zero_point, int64_t quads, int8_t* out) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i z_low = zero_points_of_quad(zero_point);
  const __m256i z_high = zero_points_of_quad(zero_point + kPanelColumns / 2);
  for (int64_t quad = 0; quad < quads; ++quad) {
    const auto* source = reinterpret_cast<const __m256i*>(packed + quad * kQuadBytesS4);
    const __m256i bytes = _mm256_loadu_si256(source);
    const __m256i low = _mm256_and_si256(bytes, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
    auto* target = reinterpret_cast<__m256i*>(out + quad * kQuadBytes);
    _mm256_store_si256(target, _mm256_sub_epi8(low, z_low));
    _mm256_store_si256(target + 1, _mm256_sub_epi8(high, z_high));
  }
}

}  // namespace

extern const expand_s4_kernel expand_s4_avx2;
const expand_s4_kernel expand_s4_avx2 = {expand};

}  // namespace tfq::cpu

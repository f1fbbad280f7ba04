// Expansion of 4-bit weights, AVX-512: a quad of 16 columns, 64 values, a step: a load, four
// operations and a store.
#include "cpu/expand_s4/expand_s4.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/simd_avx512.h"

namespace tfq::cpu {
namespace {

void expand(const uint8_t* packed, const uint8_t* zero_point, int64_t quads, int8_t* out) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m128i z_u8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zero_point));
  const __m512i z =
      _mm512_mullo_epi32(_mm512_cvtepu8_epi32(z_u8x16), _mm512_set1_epi32(0x01010101));
  for (int64_t quad = 0; quad < quads; ++quad) {
    const auto* source = reinterpret_cast<const __m256i*>(packed + quad * kQuadBytesS4);
    const __m256i bytes = _mm256_loadu_si256(source);
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(bytes), _mm256_srli_epi16(bytes, 4), 1);
    _mm512_store_si512(out + quad * kQuadBytes, _mm512_sub_epi8(_mm512_and_si512(both, nibble), z));
  }
}

}  // namespace

extern const expand_s4_kernel expand_s4_avx512;
const expand_s4_kernel expand_s4_avx512 = {expand};

}  // namespace tfq::cpu

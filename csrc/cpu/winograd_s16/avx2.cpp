// Winograd, AVX2: VPMADDWD multiplies 8 pairs (Intel SDM volume 2; two a cycle), VPADDD adds.
// Registers: 6 tiles x 2 halves of a panel of sums, 2 of taps, 1 broadcast, 1 product.
#include "cpu/simd_avx2.h"
#include "cpu/winograd_s16/winograd_s16_body.h"

namespace tfq::cpu {
namespace {

struct Avx2 {
  static constexpr int kBytes = 32;
  static constexpr int kVectors = 2;
  static constexpr int64_t kTiles = 6;

  // The addition as an instruction of its own: GCC 12 otherwise makes a copy per sum and spills.
  template <typename S32, typename S16>
  static S32 dot(S32 acc, S16 a, S16 b) {
    const __m256i products = _mm256_madd_epi16(__m256i(a), __m256i(b));
    __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(products));
    return acc;
  }
};

}  // namespace

extern const winograd_s16_kernel winograd_s16_avx2;
const winograd_s16_kernel winograd_s16_avx2 = WinogradBody<Avx2>::kernel();

}  // namespace tfq::cpu

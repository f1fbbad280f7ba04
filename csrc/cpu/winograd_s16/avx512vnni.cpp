// Winograd, AVX-512 VNNI: VPDPWSSD multiplies 16 pairs and adds them to 16 int32 lanes, without
// saturation (Intel SDM volume 2). Registers: 14 tiles x 2 panels of sums, 2 of taps, 1 broadcast.
#include "cpu/simd_avx512.h"
#include "cpu/winograd_s16/winograd_s16_body.h"

#ifndef __AVX512VNNI__
#error "winograd_s16/avx512vnni.cpp needs -mavx512vnni (cmake/TfqIsa.cmake)"
#endif

namespace tfq::cpu {
namespace {

struct Avx512Vnni {
  static constexpr int kBytes = 64;
  static constexpr int kVectors = 2;
  static constexpr int64_t kTiles = 14;

  template <typename S32, typename S16>
  static S32 dot(S32 acc, S16 a, S16 b) {
    return S32(_mm512_dpwssd_epi32(__m512i(acc), __m512i(a), __m512i(b)));
  }
};

}  // namespace

extern const winograd_s16_kernel winograd_s16_avx512vnni;
const winograd_s16_kernel winograd_s16_avx512vnni = WinogradBody<Avx512Vnni>::kernel();

}  // namespace tfq::cpu

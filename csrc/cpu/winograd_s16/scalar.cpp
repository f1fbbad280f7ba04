// Winograd, baseline x86-64: for comparison only (prefers_winograd).
#include "cpu/winograd_s16/winograd_s16_body.h"

namespace tfq::cpu {
namespace {

struct Scalar {
  static constexpr int kBytes = 16;
  static constexpr int kVectors = 1;
  static constexpr int64_t kTiles = 4;

  template <typename S32, typename S16>
  static S32 dot(S32 acc, S16 a, S16 b) {
    for (int i = 0; i < kBytes / 4; ++i)
      acc[i] = static_cast<int32_t>(static_cast<uint32_t>(acc[i]) +
                                    static_cast<uint32_t>(a[2 * i] * b[2 * i]) +
                                    static_cast<uint32_t>(a[2 * i + 1] * b[2 * i + 1]));
    return acc;
  }
};

}  // namespace

extern const winograd_s16_kernel winograd_s16_scalar;
const winograd_s16_kernel winograd_s16_scalar = WinogradBody<Scalar>::kernel();

}  // namespace tfq::cpu

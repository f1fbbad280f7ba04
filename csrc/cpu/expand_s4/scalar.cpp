// Expansion of 4-bit weights, one byte at a time: the definition.
#include "cpu/expand_s4/expand_s4.h"
#include "cpu/gemm_s8/packed_layout.h"

namespace tfq::cpu {
namespace {

void expand(const uint8_t* packed, const uint8_t* zero_point, int64_t quads, int8_t* out) {
  for (int64_t offset = 0; offset < quads * kQuadBytes; ++offset) {
    const NibblePosition position = nibble_position(offset);
    const int q = packed[position.byte] >> position.shift & 15;
    out[offset] = static_cast<int8_t>(q - zero_point[offset % kQuadBytes / kQuad]);
  }
}

}  // namespace

extern const expand_s4_kernel expand_s4_scalar;
const expand_s4_kernel expand_s4_scalar = {expand};

}  // namespace tfq::cpu

// Block kernel without vector instructions: the definition of the integer sums, and the fallback.
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kRows = 4;

void block(const GemmBlock& p) {
  for (int64_t i = 0; i < p.rows; ++i) {
    int32_t* acc = p.acc + i * kPanelColumns;
    for (int64_t j = 0; j < kPanelColumns; ++j) acc[j] = 0;
    for (int64_t quad = 0; quad < p.quads; ++quad) {
      const uint8_t* a = p.a + i * p.lda + quad * kQuad;
      const int8_t* b = p.b + quad * kPanelColumns * kQuad;
      for (int64_t j = 0; j < kPanelColumns; ++j)
        for (int64_t q = 0; q < kQuad; ++q) acc[j] += a[q] * b[j * kQuad + q];
    }
  }
}

}  // namespace

extern const gemm_s8_kernel gemm_s8_4x16_scalar;
const gemm_s8_kernel gemm_s8_4x16_scalar = {kRows,   kPanelColumns, 1,     kQuad,  nullptr,
                                            nullptr, block,         block, nullptr};

}  // namespace tfq::cpu

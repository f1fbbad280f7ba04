// Weights as floats, 16 values a vector: dequantize_weight_body.h.
#include "cpu/dequantize_weight/dequantize_weight_body.h"
#include "cpu/vector_avx512.h"

namespace tfq::cpu {

extern const dequantize_weight_kernel dequantize_weight_avx512;
const dequantize_weight_kernel dequantize_weight_avx512 =
    DequantizeWeightBody<VectorAvx512>::kKernel;

}  // namespace tfq::cpu

// Weights as floats, 8 values a vector: dequantize_weight_body.h.
#include "cpu/dequantize_weight/dequantize_weight_body.h"
#include "cpu/vector_avx2.h"

namespace tfq::cpu {

extern const dequantize_weight_kernel dequantize_weight_avx2;
const dequantize_weight_kernel dequantize_weight_avx2 = DequantizeWeightBody<VectorAvx2>::kKernel;

}  // namespace tfq::cpu

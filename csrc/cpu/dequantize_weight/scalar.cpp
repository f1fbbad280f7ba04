// Weights as floats, one value at a time: dequantize_weight_body.h.
#include "cpu/dequantize_weight/dequantize_weight_body.h"
#include "cpu/vector_scalar.h"

namespace tfq::cpu {

extern const dequantize_weight_kernel dequantize_weight_scalar;
const dequantize_weight_kernel dequantize_weight_scalar =
    DequantizeWeightBody<VectorScalar>::kKernel;

}  // namespace tfq::cpu

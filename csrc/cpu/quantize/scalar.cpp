// Quantise and range kernels, one value at a time: quantize_body.h.
#include "cpu/quantize/quantize_body.h"
#include "cpu/vector_scalar.h"

namespace tfq::cpu {

extern const quantize_kernel quantize_scalar;
const quantize_kernel quantize_scalar = QuantizeBody<VectorScalar>::kKernel;

}  // namespace tfq::cpu

// Quantise and range kernels, 16 values a vector: quantize_body.h.
#include "cpu/quantize/quantize_body.h"
#include "cpu/vector_avx512.h"

namespace tfq::cpu {

extern const quantize_kernel quantize_avx512;
const quantize_kernel quantize_avx512 = QuantizeBody<VectorAvx512>::kKernel;

}  // namespace tfq::cpu

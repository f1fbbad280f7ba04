// Quantise and range kernels, 8 values a vector: quantize_body.h.
#include "cpu/quantize/quantize_body.h"
#include "cpu/vector_avx2.h"

namespace tfq::cpu {

extern const quantize_kernel quantize_avx2;
const quantize_kernel quantize_avx2 = QuantizeBody<VectorAvx2>::kKernel;

}  // namespace tfq::cpu

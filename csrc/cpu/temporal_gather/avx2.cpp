// Dequantised rows, 8 values a vector: temporal_gather_body.h.
#include "cpu/temporal_gather/temporal_gather_body.h"
#include "cpu/vector_avx2.h"

namespace tfq::cpu {

extern const temporal_gather_kernel temporal_gather_avx2;
const temporal_gather_kernel temporal_gather_avx2 = TemporalGatherBody<VectorAvx2>::kKernel;

}  // namespace tfq::cpu

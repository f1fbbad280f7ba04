// Dequantised rows, 16 values a vector: temporal_gather_body.h.
#include "cpu/temporal_gather/temporal_gather_body.h"
#include "cpu/vector_avx512.h"

namespace tfq::cpu {

extern const temporal_gather_kernel temporal_gather_avx512;
const temporal_gather_kernel temporal_gather_avx512 = TemporalGatherBody<VectorAvx512>::kKernel;

}  // namespace tfq::cpu

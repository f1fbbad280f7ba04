// Dequantised rows, one value at a time: temporal_gather_body.h.
#include "cpu/temporal_gather/temporal_gather_body.h"
#include "cpu/vector_scalar.h"

namespace tfq::cpu {

extern const temporal_gather_kernel temporal_gather_scalar;
const temporal_gather_kernel temporal_gather_scalar = TemporalGatherBody<VectorScalar>::kKernel;

}  // namespace tfq::cpu

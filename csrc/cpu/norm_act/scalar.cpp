// GroupNorm, LayerNorm and GEGLU kernels, one value at a time: the *_body.h files.
#include "cpu/norm_act/geglu_body.h"
#include "cpu/norm_act/group_norm_body.h"
#include "cpu/norm_act/layer_norm_body.h"
#include "cpu/vector_scalar.h"

namespace tfq::cpu {

extern const group_norm_kernel group_norm_scalar;
extern const layer_norm_kernel layer_norm_scalar;
extern const geglu_kernel geglu_scalar;
const group_norm_kernel group_norm_scalar = GroupNormBody<VectorScalar>::kKernel;
const layer_norm_kernel layer_norm_scalar = LayerNormBody<VectorScalar>::kKernel;
const geglu_kernel geglu_scalar = GegluBody<VectorScalar>::kKernel;

}  // namespace tfq::cpu

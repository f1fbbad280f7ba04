// GroupNorm, LayerNorm and GEGLU kernels, 8 values a vector: the *_body.h files.
#include "cpu/norm_act/geglu_body.h"
#include "cpu/norm_act/group_norm_body.h"
#include "cpu/norm_act/layer_norm_body.h"
#include "cpu/vector_avx2.h"

namespace tfq::cpu {

extern const group_norm_kernel group_norm_avx2;
extern const layer_norm_kernel layer_norm_avx2;
extern const geglu_kernel geglu_avx2;
const group_norm_kernel group_norm_avx2 = GroupNormBody<VectorAvx2>::kKernel;
const layer_norm_kernel layer_norm_avx2 = LayerNormBody<VectorAvx2>::kKernel;
const geglu_kernel geglu_avx2 = GegluBody<VectorAvx2>::kKernel;

}  // namespace tfq::cpu

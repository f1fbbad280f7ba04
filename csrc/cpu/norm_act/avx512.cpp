// GroupNorm, LayerNorm and GEGLU kernels, 16 values a vector: the *_body.h files.
#include "cpu/norm_act/geglu_body.h"
#include "cpu/norm_act/group_norm_body.h"
#include "cpu/norm_act/layer_norm_body.h"
#include "cpu/vector_avx512.h"

namespace tfq::cpu {

extern const group_norm_kernel group_norm_avx512;
extern const layer_norm_kernel layer_norm_avx512;
extern const geglu_kernel geglu_avx512;
const group_norm_kernel group_norm_avx512 = GroupNormBody<VectorAvx512>::kKernel;
const layer_norm_kernel layer_norm_avx512 = LayerNormBody<VectorAvx512>::kKernel;
const geglu_kernel geglu_avx512 = GegluBody<VectorAvx512>::kKernel;

}  // namespace tfq::cpu

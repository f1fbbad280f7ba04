// Logits, softmax and quantisation of attention, 8 values a vector: attention_s8_body.h.
#include "cpu/attention_s8/attention_s8_body.h"
#include "cpu/vector_avx2.h"

namespace tfq::cpu {

extern const attention_s8_kernel attention_s8_avx2;
const attention_s8_kernel attention_s8_avx2 = AttentionS8Body<VectorAvx2>::kKernel;

}  // namespace tfq::cpu

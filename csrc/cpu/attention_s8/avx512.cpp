// Logits, softmax and quantisation of attention, 16 values a vector: attention_s8_body.h.
#include "cpu/attention_s8/attention_s8_body.h"
#include "cpu/vector_avx512.h"

namespace tfq::cpu {

extern const attention_s8_kernel attention_s8_avx512;
const attention_s8_kernel attention_s8_avx512 = AttentionS8Body<VectorAvx512>::kKernel;

}  // namespace tfq::cpu

// Logits, softmax and quantisation of attention, one value at a time: attention_s8_body.h.
#include "cpu/attention_s8/attention_s8_body.h"
#include "cpu/vector_scalar.h"

namespace tfq::cpu {

extern const attention_s8_kernel attention_s8_scalar;
const attention_s8_kernel attention_s8_scalar = AttentionS8Body<VectorScalar>::kKernel;

}  // namespace tfq::cpu

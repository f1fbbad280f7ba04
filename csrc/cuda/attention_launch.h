// What the launches of attention share; free of CUDA headers.
#pragma once

#include "cuda/attention_args.h"
#include "cuda/bandwidth.h"

namespace tfq::cuda {

// Queues the kernels that quantise query, key and value into `out`.
void quantize_operands(const AttentionArgs& args, const AttentionSizes& sizes,
                       const AttentionOperands& out, const Launch& launch);

}  // namespace tfq::cuda

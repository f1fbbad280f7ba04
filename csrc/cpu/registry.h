// Kernel lookup: the table of kernels.inc, by family and level.
#pragma once

#include <string>
#include <vector>

#include "cpu/attention_s8/attention_s8.h"
#include "cpu/dequantize_weight/dequantize_weight.h"
#include "cpu/epilogue/epilogue.h"
#include "cpu/expand_s4/expand_s4.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/isa.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/quantize/quantize.h"
#include "cpu/temporal_gather/temporal_gather.h"
#include "cpu/winograd_s16/winograd_s16.h"

namespace tfq::cpu {

struct KernelInfo {
  const char* family;
  const char* name;
  Level level;
};

// Every kernel of the table, in its order.
const std::vector<KernelInfo>& kernel_table();

// The kernel of a family that `level` runs.
const gemm_s8_kernel& select_gemm_s8(Level level);
const winograd_s16_kernel& select_winograd_s16(Level level);
const expand_s4_kernel& select_expand_s4(Level level);
const dequantize_weight_kernel& select_dequantize_weight(Level level);
const epilogue_kernel& select_epilogue(Level level);
const quantize_kernel& select_quantize(Level level);
const group_norm_kernel& select_group_norm(Level level);
const layer_norm_kernel& select_layer_norm(Level level);
const geglu_kernel& select_geglu(Level level);
const attention_s8_kernel& select_attention_s8(Level level);
const temporal_gather_kernel& select_temporal_gather(Level level);

}  // namespace tfq::cpu

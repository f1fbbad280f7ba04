#include "cpu/registry.h"

#include <cstring>

namespace tfq::cpu {

#define TFQ_KERNEL(family, name, level) extern const family##_kernel name;
#include "cpu/kernels.inc"
#undef TFQ_KERNEL

namespace {

struct Entry {
  KernelInfo info;
  const void* kernel;
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> table = {
#define TFQ_KERNEL(family, name, level) {{#family, #name, Level::level}, &name},
#include "cpu/kernels.inc"
#undef TFQ_KERNEL
  };
  return table;
}

template <typename Kernel>
const Kernel& select(const char* family, Level level) {
  const void* found = nullptr;
  for (const Entry& entry : entries())
    if (std::strcmp(entry.info.family, family) == 0 && entry.info.level <= level)
      found = entry.kernel;
  return *static_cast<const Kernel*>(found);
}

}  // namespace

const std::vector<KernelInfo>& kernel_table() {
  static const std::vector<KernelInfo> table = [] {
    std::vector<KernelInfo> infos;
    for (const Entry& entry : entries()) infos.push_back(entry.info);
    return infos;
  }();
  return table;
}

const gemm_s8_kernel& select_gemm_s8(Level level) {
  return select<gemm_s8_kernel>("gemm_s8", level);
}
const winograd_s16_kernel& select_winograd_s16(Level level) {
  return select<winograd_s16_kernel>("winograd_s16", level);
}
const expand_s4_kernel& select_expand_s4(Level level) {
  return select<expand_s4_kernel>("expand_s4", level);
}
const dequantize_weight_kernel& select_dequantize_weight(Level level) {
  return select<dequantize_weight_kernel>("dequantize_weight", level);
}
const epilogue_kernel& select_epilogue(Level level) {
  return select<epilogue_kernel>("epilogue", level);
}
const quantize_kernel& select_quantize(Level level) {
  return select<quantize_kernel>("quantize", level);
}
const group_norm_kernel& select_group_norm(Level level) {
  return select<group_norm_kernel>("group_norm", level);
}
const layer_norm_kernel& select_layer_norm(Level level) {
  return select<layer_norm_kernel>("layer_norm", level);
}
const geglu_kernel& select_geglu(Level level) { return select<geglu_kernel>("geglu", level); }
const attention_s8_kernel& select_attention_s8(Level level) {
  return select<attention_s8_kernel>("attention_s8", level);
}
const temporal_gather_kernel& select_temporal_gather(Level level) {
  return select<temporal_gather_kernel>("temporal_gather", level);
}

}  // namespace tfq::cpu

// Instantiations and launch of attention.
#include "cuda/attention_s8_sm80.cuh"

#include "cuda/attention_launch.h"

namespace tfq::cuda {
namespace {

constexpr const char* kName = "attention_s8";

struct Entry {
  const char* name;
  void (*kernel)(const AttentionLaunch);
  uint32_t shared_bytes;
};

#define TFQ_HEAD(channels)                                          \
  {"attention_s8_d" #channels "_sm80", attention_s8_sm80<channels>, \
   AttentionShape<channels>::kSharedBytes},
constexpr Entry kEntries[] = {TFQ_HEAD_CHANNELS(TFQ_HEAD)};
#undef TFQ_HEAD

}  // namespace

void attention_s8(const AttentionArgs& args, void* workspace, const Launch& launch) {
  if (args.batch == 0 || args.tokens == 0 || args.heads == 0) return;
  const AttentionSizes sizes(args);
  TFQ_CHECK(sizes.heads <= kMaxGridY, kName, ": CUDA kernels need at most ", kMaxGridY,
            " heads in all, got ", args.batch, " images of ", args.heads);
  check_address(kName, "query", args.query);
  check_address(kName, "key", args.key);
  check_address(kName, "value", args.value);
  check_address(kName, "out", args.out);
  check_address(kName, "workspace", workspace);
  const AttentionLaunch attention{AttentionOperands(workspace, sizes),
                                  narrow(kName, args.heads),
                                  narrow(kName, args.tokens),
                                  narrow(kName, args.kv_tokens),
                                  narrow(kName, args.head_size),
                                  args.out,
                                  args.out_dtype};
  const DeviceGuard guard(launch.device);
  quantize_operands(args, sizes, attention.operands, launch);
  const Entry& entry = kEntries[sizes.kernel];
  simt::launch(entry.kernel,
               bandwidth_config(entry.name,
                                {static_cast<uint32_t>(sizes.tokens / kQueryTokens),
                                 static_cast<uint32_t>(sizes.heads), 1},
                                kAttentionThreads, entry.shared_bytes, launch),
               attention);
}

}  // namespace tfq::cuda

// Launches of what makes the integer operands of attention.
#include "cuda/attention_operands.cuh"

#include <utility>

#include "cuda/attention_launch.h"

namespace tfq::cuda {
namespace {

constexpr const char* kName = "attention_s8";

template <TokenOperand Operand>
auto tokens_kernel(int depth) {
  constexpr int kFewLanes = 8, kSomeLanes = 16;
  if (depth <= kFewLanes * kOperandRun) return std::pair(quantize_tokens<Operand, kFewLanes>, kFewLanes);
  if (depth <= kSomeLanes * kOperandRun)
    return std::pair(quantize_tokens<Operand, kSomeLanes>, kSomeLanes);
  return std::pair(quantize_tokens<Operand, simt::kWarpSize>, simt::kWarpSize);
}

template <TokenOperand Operand>
void launch_tokens(const char* name, const TokensLaunch& args, const Launch& launch) {
  const auto [kernel, lanes] = tokens_kernel<Operand>(args.depth);
  const int64_t blocks = ceil_div(int64_t{args.rows} * lanes, kOperandThreads);
  simt::launch(kernel,
               bandwidth_config(name, {static_cast<uint32_t>(blocks), 1, 1}, kOperandThreads, 0, launch),
               args);
}

}  // namespace

void quantize_operands(const AttentionArgs& args, const AttentionSizes& sizes,
                       const AttentionOperands& out, const Launch& launch) {
  TokensLaunch tokens{};
  tokens.x = args.query;
  tokens.x_dtype = args.dtype;
  tokens.heads = narrow(kName, args.heads);
  tokens.tokens = narrow(kName, args.tokens);
  tokens.padded_tokens = narrow(kName, sizes.tokens);
  tokens.head_size = narrow(kName, args.head_size);
  tokens.depth = key_depth(sizes.channels);
  tokens.rows = narrow(kName, sizes.heads * sizes.tokens);
  tokens.scale = args.scale;
  tokens.out = out.query;
  tokens.facts = out.query_facts;
  launch_tokens<TokenOperand::kQuery>("attention_s8_query", tokens, launch);
  tokens.x = args.key;
  tokens.tokens = narrow(kName, args.kv_tokens);
  tokens.padded_tokens = narrow(kName, sizes.kv_tokens);
  tokens.rows = narrow(kName, sizes.heads * sizes.kv_tokens);
  tokens.out = out.key;
  tokens.facts = out.key_facts;
  launch_tokens<TokenOperand::kKey>("attention_s8_key", tokens, launch);
  const ValueLaunch value{args.value,
                          args.dtype,
                          tokens.heads,
                          tokens.tokens,
                          tokens.padded_tokens,
                          tokens.head_size,
                          sizes.channels,
                          out.value,
                          out.value_scale};
  constexpr uint32_t kReductionBytes = kOperandThreads / simt::kWarpSize * sizeof(float);
  simt::launch(quantize_value,
               bandwidth_config("attention_s8_value",
                                {static_cast<uint32_t>(sizes.channels / kOperandRun),
                                 static_cast<uint32_t>(sizes.heads), 1},
                                kOperandThreads, kReductionBytes, launch),
               value);
}

}  // namespace tfq::cuda

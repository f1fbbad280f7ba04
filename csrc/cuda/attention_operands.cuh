// The integer operands of attention from float ones, as docs/numerics.md says: query and key by token
// and head, the value by channel of a head. Limited by memory bandwidth, and small beside the attention.
#pragma once

#include "common/quant.h"
#include "common/softmax.h"
#include "cuda/attention_args.h"
#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"

namespace tfq::cuda {

constexpr int kOperandThreads = 256;
constexpr int kOperandRun = 8;  // channels a thread handles
constexpr uint32_t kSignBits = 0x80808080u;

enum class TokenOperand { kQuery, kKey };

TFQ_DEVICE int32_t sum_of_bytes(uint32_t word) {
  int32_t sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(word >> (8 * i));
  return sum;
}

// A row of one head has Lanes neighbouring threads, each with a run of channels.
// grid = rows * Lanes / kOperandThreads
template <TokenOperand Operand, int Lanes>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kOperandThreads, 2)
    quantize_tokens(TFQ_GRID_CONSTANT const TokensLaunch args) {
  ptx::begin_kernel();
  const int64_t index = int64_t{simt::block_index().x} * kOperandThreads + simt::thread_index();
  const auto row = static_cast<int32_t>(index / Lanes);
  const int c = kOperandRun * (simt::thread_index() % Lanes);
  const int head = row % args.heads, token = row / args.heads % args.padded_tokens;
  const int64_t image = row / args.heads / args.padded_tokens;
  const bool exists = row < args.rows;

  float x[kOperandRun] = {};
  if (exists && token < args.tokens && c < args.head_size)
    load_run(args.x, args.x_dtype,
             ((image * args.tokens + token) * args.heads + head) * args.head_size + c, x);
  float low = 0.0f, high = 0.0f;
  widen(x, low, high);
  low = reduce_lanes<MinOp, Lanes>(low);
  high = reduce_lanes<MaxOp, Lanes>(high);
  float qparams[kQParamsWidth];
  if constexpr (Operand == TokenOperand::kQuery) {
    qparams_from_range(low, high, qparams);
  } else {
    qparams[0] = symmetric_scale(MaxOp::combine(high, -low));
    qparams[1] = 1.0f / qparams[0];
    qparams[2] = kSignedZero;
  }
  uint32_t words[2];
#pragma unroll
  for (int w = 0; w < 2; ++w) words[w] = quantize4(x + 4 * w, qparams[1], qparams[2]) ^ kSignBits;
  const int32_t sum = reduce_lanes<SumOp, Lanes>(sum_of_bytes(words[0]) + sum_of_bytes(words[1]));

  const int64_t target = (image * args.heads + head) * args.padded_tokens + token;
  if (exists && c < args.depth) store_words(args.out + target * args.depth + c, words);
  if (exists && c == 0) {
    const bool query = Operand == TokenOperand::kQuery;
    const float facts[2] = {
        query ? softmax_factor(qparams[0], args.scale) : static_cast<float>(sum),
        query ? qparams[2] - kSignedZero : qparams[0]};
    store_run(args.facts, DType::kFloat32, 2 * target, facts);
  }
}

// A block has a run of channels of one head, and reads it twice.
// grid = (channels / kOperandRun, batch * heads)
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kOperandThreads, 2)
    quantize_value(TFQ_GRID_CONSTANT const ValueLaunch args) {
  ptx::begin_kernel();
  const int c = kOperandRun * static_cast<int>(simt::block_index().x);
  const int64_t head_of_all = simt::block_index().y;
  const int64_t image = head_of_all / args.heads, head = head_of_all % args.heads;
  const auto load = [&](int token, float(&x)[kOperandRun]) {
    if (token < args.tokens && c < args.head_size)
      load_run(args.x, args.x_dtype,
               ((image * args.tokens + token) * args.heads + head) * args.head_size + c, x);
  };

  float scale[kOperandRun] = {}, r[kOperandRun];
  for (int token = simt::thread_index(); token < args.tokens; token += kOperandThreads) {
    float x[kOperandRun] = {};
    load(token, x);
#pragma unroll
    for (int i = 0; i < kOperandRun; ++i)
      scale[i] = MaxOp::combine(scale[i], x[i] < 0.0f ? -x[i] : x[i]);
  }
#pragma unroll
  for (int i = 0; i < kOperandRun; ++i) {
    scale[i] = symmetric_scale(
        reduce_row<MaxOp, kOperandThreads / simt::kWarpSize>(scale[i], 0));
    r[i] = 1.0f / scale[i];
  }
  const int64_t first = head_of_all * args.channels + c;
  if (simt::thread_index() == 0) store_run(args.scale, DType::kFloat32, first, scale);

  for (int byte = 4 * simt::thread_index(); byte < args.padded_tokens; byte += 4 * kOperandThreads) {
    float x[4][kOperandRun] = {};
#pragma unroll
    for (int b = 0; b < 4; ++b)
      load(simt::fault(simt::kFaultTokensInOrder) ? byte + b : token_at(byte + b), x[b]);
#pragma unroll
    for (int i = 0; i < kOperandRun; ++i) {
      const float tokens[4] = {x[0][i], x[1][i], x[2][i], x[3][i]};
      const uint32_t word[1] = {quantize4(tokens, r[i], kSignedZero) ^ kSignBits};
      const int64_t row = head_of_all * args.channels + value_row(c + i);
      store_words(args.out + row * args.padded_tokens + byte, word);
    }
  }
}

}  // namespace tfq::cuda

// The integer operands of attention as the kernels take them, and the workspace that holds them; free
// of CUDA headers.
#pragma once

#include "common/api.h"
#include "common/check.h"
#include "common/host_device.h"
#include "common/math.h"

namespace tfq::cuda {

// A block of threads computes this many rows of the output, and takes so many tokens of key and value
// at a time.
constexpr int kQueryTokens = 128;
constexpr int kKeyTokens = 64;

// Channels of a head there are kernels for: heads of SD1.5 have 40, 80 and 160, of SDXL 64, of DiT 72.
#define TFQ_HEAD_CHANNELS(HEAD) \
  HEAD(32) HEAD(48) HEAD(64) HEAD(80) HEAD(128) HEAD(160) HEAD(256)

#define TFQ_HEAD(channels) channels,
constexpr int kHeadChannels[] = {TFQ_HEAD_CHANNELS(TFQ_HEAD)};
#undef TFQ_HEAD
constexpr int kHeadKernels = sizeof(kHeadChannels) / sizeof(kHeadChannels[0]);

// Index of the least a head fits into; -1: there is no kernel for it. Runs of eight channels are read
// and written as vectors.
static constexpr int head_kernel(int64_t head_size) {
  if (head_size < 8 || head_size % 8 != 0) return -1;
  for (int i = 0; i < kHeadKernels; ++i)
    if (head_size <= kHeadChannels[i]) return i;
  return -1;
}

static inline int checked_head_kernel(int64_t head_size) {
  const int kernel = head_kernel(head_size);
  TFQ_CHECK(kernel >= 0, "attention_s8: CUDA kernels need heads of a multiple of 8 up to ",
            kHeadChannels[kHeadKernels - 1], " channels, got ", head_size);
  return kernel;
}

// Channels the products of query and key sum over.
static TFQ_HOST_DEVICE constexpr int key_depth(int channels) { return (channels + 31) / 32 * 32; }

// Tokens are filled up to whole blocks, channels to those of the kernel; what fills up is zero. Throws
// for a head without a kernel.
struct AttentionSizes {
  explicit AttentionSizes(const AttentionArgs& args)
      : heads(args.batch * args.heads),
        kernel(checked_head_kernel(args.head_size)),
        channels(kHeadChannels[kernel]),
        tokens(round_up(args.tokens, kQueryTokens)),
        kv_tokens(round_up(args.kv_tokens, kKeyTokens)) {}

  int64_t heads;  // of all images
  int kernel;     // head_kernel()
  int channels;
  int64_t tokens, kv_tokens;

  int64_t query_bytes() const { return heads * tokens * key_depth(channels); }
  int64_t key_bytes() const { return heads * kv_tokens * key_depth(channels); }
  int64_t value_bytes() const { return heads * channels * kv_tokens; }
  int64_t floats() const { return heads * (2 * tokens + 2 * kv_tokens + channels); }
  int64_t bytes() const {
    return query_bytes() + key_bytes() + value_bytes() +
           floats() * static_cast<int64_t>(sizeof(float));
  }
};

// Of AttentionSizes; every piece begins at a multiple of 16 bytes, if the workspace does.
struct AttentionOperands {
  AttentionOperands(void* workspace, const AttentionSizes& sizes)
      : query(static_cast<int8_t*>(workspace)),
        key(query + sizes.query_bytes()),
        value(key + sizes.key_bytes()),
        query_facts(reinterpret_cast<float*>(value + sizes.value_bytes())),
        key_facts(query_facts + 2 * sizes.heads * sizes.tokens),
        value_scale(key_facts + 2 * sizes.heads * sizes.kv_tokens) {}

  int8_t* query;       // (heads, tokens, key_depth): the uint8 integers less 128
  int8_t* key;         // (heads, kv_tokens, key_depth)
  int8_t* value;       // (heads, channels, kv_tokens), both in an order of their own: see below
  float* query_facts;  // (heads, tokens, 2): softmax_factor(), zero-point less 128
  float* key_facts;    // (heads, kv_tokens, 2): sum over the channels, scale
  float* value_scale;  // (heads, channels)
};

// Where the value's channels and tokens lie. The weights of a row leave the first product as
// accumulators: a thread has tokens 8 * j + 2 * t + e of 32, where t is its place among the four threads
// of a row (j < 4; e < 2). The second product wants bytes 16 * i + 4 * t + b from it (i < 2; b < 4). The
// sum does not depend on the order, so that token 8 * (2 * i + b / 2) + 2 * t + b % 2 takes that byte's
// place, and no weight goes to another thread. Channels are permuted within 16, so that the accumulators
// of a thread are four neighbouring channels.
static TFQ_HOST_DEVICE constexpr int token_at(int byte) {
  const int group = byte / 32 * 32, i = byte / 16 % 2, t = byte / 4 % 4, b = byte % 4;
  return group + 8 * (2 * i + b / 2) + 2 * t + b % 2;
}
static TFQ_HOST_DEVICE constexpr int value_row(int channel) {
  return channel / 16 * 16 + 8 * (channel / 2 % 2) + 2 * (channel / 4 % 4) + channel % 2;
}

struct AttentionLaunch {
  AttentionOperands operands;
  int32_t heads;              // of an image
  int32_t tokens, kv_tokens;  // not filled up
  int32_t head_size;
  void* out;  // (batch, tokens, heads * head_size)
  DType out_dtype;
};

// Rows of query or key, of all heads.
struct TokensLaunch {
  const void* x;  // (batch, tokens, heads * head_size)
  DType x_dtype;
  int32_t heads, tokens, padded_tokens, head_size, depth;
  int32_t rows;  // batch * padded_tokens * heads
  float scale;   // of the attention: the query's facts hold it
  int8_t* out;   // (batch * heads, padded_tokens, depth)
  float* facts;  // (batch * heads, padded_tokens, 2)
};

struct ValueLaunch {
  const void* x;  // (batch, tokens, heads * head_size)
  DType x_dtype;
  int32_t heads, tokens, padded_tokens, head_size, channels;
  int8_t* out;   // (batch * heads, channels, padded_tokens)
  float* scale;  // (batch * heads, channels)
};

}  // namespace tfq::cuda

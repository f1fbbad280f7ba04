// The integer operands of attention: key and value of a head, packed once; query rows as needed.
#pragma once

#include "common/math.h"
#include "cpu/attention_s8/attention_s8.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/quantize/quantize.h"

namespace tfq::cpu {

// Sizes of the operands of one head, for a block kernel whose depth is a multiple of k_step.
struct HeadSizes {
  HeadSizes(const AttentionArgs& args, int64_t k_step)
      : key_depth(round_up(args.head_size, k_step)),
        value_depth(round_up(args.kv_tokens, max_of(k_step, kPanelColumns))),
        padded_tokens(round_up(args.kv_tokens, kPanelColumns)),
        padded_channels(round_up(args.head_size, kPanelColumns)) {}

  int64_t key_depth;        // channels the first product sums over
  int64_t value_depth;      // tokens the second product sums over, at least padded_tokens
  int64_t padded_tokens;    // columns of the first product
  int64_t padded_channels;  // columns of the second product

  int64_t key_bytes() const { return padded_tokens * key_depth; }
  int64_t value_bytes() const { return padded_channels * value_depth; }
  int64_t floats() const { return 3 * padded_tokens + padded_channels; }
  // Of a head's operands in one piece; a multiple of 64.
  int64_t bytes() const {
    return round_up(key_bytes() + value_bytes() + floats() * static_cast<int64_t>(sizeof(float)),
                    64);
  }
};

// A head's key, as n = tokens and k = channels, and value, as n = channels and k = tokens, in
// panels and quads (gemm_s8/packed_layout.h) of their own depths, and what belongs to their
// columns.
struct HeadOperands {
  HeadOperands(char* memory, const HeadSizes& sizes)
      : key(reinterpret_cast<int8_t*>(memory)),
        value(key + sizes.key_bytes()),
        key_sum(reinterpret_cast<float*>(value + sizes.value_bytes())),
        key_scale(key_sum + sizes.padded_tokens),
        key_offset(key_scale + sizes.padded_tokens),
        value_scale(key_offset + sizes.padded_tokens) {}

  int8_t* key;
  int8_t* value;
  float *key_sum, *key_scale, *key_offset;  // (padded_tokens), see KeyColumns
  float* value_scale;                       // (padded_channels)
};

// The operands of all heads of all images.
struct AttentionOperands {
  HeadSizes sizes;
  char* memory;  // images * heads * sizes.bytes()

  HeadOperands head(int64_t index) const {
    return HeadOperands(memory + index * sizes.bytes(), sizes);
  }
};

struct OperandKernels {
  const quantize_kernel& quantize;
  const attention_s8_kernel& attention;
};

// Brings the channels of a head in row `row` of x (batch * tokens, heads * head_size) to the cache:
// pieces of a line or two, far apart, which no hardware foresees.
void prefetch_head(const AttentionArgs& args, const void* x, int64_t row, int64_t head);

// int8, symmetric. The key has a scale per token: a panel of 16 tokens of all heads, whose rows are
// then read from end to end. The value has a scale per channel: all tokens of a head.
void pack_key(const AttentionArgs& args, const OperandKernels& kernels, int64_t batch,
              int64_t token_first, const AttentionOperands& operands);
void pack_value(const AttentionArgs& args, const OperandKernels& kernels, int64_t batch,
                int64_t head, const AttentionOperands& operands);

// out (key_depth, 0 beyond head_size) <- uint8 of a row of the query by its own range; returns its
// scale and zero-point.
struct QueryRow {
  float scale, zero_point;
};
QueryRow quantize_query(const AttentionArgs& args, const OperandKernels& kernels, int64_t batch,
                        int64_t head, int64_t token, const HeadSizes& sizes, uint8_t* out);

}  // namespace tfq::cpu

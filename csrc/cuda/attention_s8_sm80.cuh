// out = softmax(query * key^T * scale) * value of each head, on integers: docs/numerics.md has the
// formula, and the bits are the CPU's. For sm_80 and later.
//
// A softmax weight is rounded to uint8 by the largest logit of its whole row, so the key is gone through
// twice: once for the largest logits, then again for the weights, which are multiplied by the value
// where they are (attention_args.h). A warp has 16 rows of the query, and their fragments in registers;
// key and value come in blocks of tokens, the next one while one is worked on. Shared memory: rows of
// key, rows of value, two floats a token of the key; rows are 16 bytes longer than their data, an odd
// number of 16-byte units, which puts the eight rows ldmatrix reads at a time into different banks.
//
// Some 26 instructions a logit on the float and integer pipes limit it for heads of up to 128 channels,
// not the products. Rows of the query a block has decide what is read from L2: 1.5 bytes a logit at 64
// channels. Not measured on a card yet.
#pragma once

#include "common/softmax.h"
#include "cuda/attention_args.h"
#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"

namespace tfq::cuda {

constexpr int kAttentionThreads = kQueryTokens / 16 * simt::kWarpSize;
constexpr int kChunkTokens = 32;  // of the key, that a warp works on at a time

template <int Channels>
struct AttentionShape {
  static constexpr int kChannels = Channels, kDepth = key_depth(Channels);
  static constexpr int kKeyPitch = kDepth + 16, kValuePitch = kKeyTokens + 16;  // bytes
  static constexpr uint32_t kValue = kKeyTokens * kKeyPitch;  // offsets in a stage
  static constexpr uint32_t kFacts = kValue + kChannels * kValuePitch;
  static constexpr uint32_t kFactsBytes = kKeyTokens * 2 * sizeof(float);
  static constexpr uint32_t kStageBytes = kFacts + kFactsBytes;
  static constexpr uint32_t kSharedBytes = 2 * kStageBytes;
  // Blocks of a multiprocessor that 65536 registers are shared by.
  static constexpr int kBlocks = Channels <= 80 ? 2 : 1;
  // Sums of the first product begin at the bits of kRoundToInteger, and are floats less it at the end.
  static_assert(kDepth * 128 * 127 < (1 << 22) && kDepth % 32 == 0 && kChannels % 16 == 0);
};

// Rows of Bytes bytes, `stride` apart in global memory, to shared memory.
template <int Rows, int Bytes>
TFQ_DEVICE void copy_rows(const void* source, int64_t stride, uint32_t target, int pitch) {
  constexpr int kRowChunks = Bytes / 16, kChunks = Rows * kRowChunks;
#pragma unroll
  for (int i = 0; i < kChunks; i += kAttentionThreads) {
    const int chunk = i + simt::thread_index();
    if (i + kAttentionThreads > kChunks && chunk >= kChunks) continue;
    const int row = chunk / kRowChunks, byte = chunk % kRowChunks * 16;
    ptx::copy_async(target + static_cast<uint32_t>(row * pitch + byte),
                    static_cast<const char*>(source) + row * stride + byte, true);
  }
}

// Offset, from that of the first, of the row and the 16 bytes of it that a lane names to ldmatrix for
// the operand of two products: 16 rows of 32 bytes.
TFQ_DEVICE uint32_t matrix_offset(int pitch) {
  const int lane = simt::lane_index();
  return static_cast<uint32_t>((lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16);
}

// What a warp knows of its 16 rows; a thread has rows lane / 4 and lane / 4 + 8.
template <typename Shape>
struct QueryRows {
  uint32_t fragment[Shape::kDepth / 32][4];
  float factor[2], minus_zero[2];

  // `first` row of the padded query of all heads.
  TFQ_DEVICE QueryRows(const AttentionOperands& operands, int64_t first) {
    const int lane = simt::lane_index();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane / 4 + 8 * half;
      float facts[2];
      load_run(operands.query_facts + 2 * row, facts);
      factor[half] = facts[0];
      minus_zero[half] = -facts[1];
      const int8_t* bytes = operands.query + row * Shape::kDepth + lane % 4 * 4;
#pragma unroll
      for (int i = 0; i < Shape::kDepth / 16; ++i) {
        uint32_t word[1];
        load_words(bytes + 16 * i, word);
        fragment[i / 2][i % 2 * 2 + half] = word[0];
      }
    }
  }
};

// Logits of a warp's rows and 32 tokens, in the order of accumulators: [j][r] is row lane / 4 + 8 * (r /
// 2) and token 8 * j + 2 * (lane % 4) + r % 2. `left` tokens are not padding.
template <typename Shape>
TFQ_DEVICE void compute_logits(const QueryRows<Shape>& query, uint32_t stage, int chunk, int left,
                               float (&u)[4][4]) {
  int32_t acc[4][4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int r = 0; r < 4; ++r) acc[j][r] = kRoundToIntegerBits;
  const uint32_t rows = stage + static_cast<uint32_t>(chunk * kChunkTokens * Shape::kKeyPitch) +
                        matrix_offset(Shape::kKeyPitch);
#pragma unroll
  for (int step = 0; step < Shape::kDepth / 32; ++step) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t b[4];
      ptx::load_matrix_x4(b, rows + static_cast<uint32_t>(16 * pair * Shape::kKeyPitch + 32 * step));
      ptx::mma_s8s8(acc[2 * pair], query.fragment[step], b[0], b[1]);
      ptx::mma_s8s8(acc[2 * pair + 1], query.fragment[step], b[2], b[3]);
    }
  }
  const int column = simt::lane_index() % 4 * 2;
  const auto* facts = simt::shared_at<float>(stage + Shape::kFacts) + 2 * chunk * kChunkTokens;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float of_two[4];  // sum and scale
    load_run(facts + 2 * (8 * j + column), of_two);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float sum = ptx::bits_to_float(static_cast<uint32_t>(acc[j][r])) - kRoundToInteger;
      const float centred =
          ptx::fused_multiply_add(query.minus_zero[r / 2], of_two[r % 2 * 2], sum);
      u[j][r] = centred * of_two[r % 2 * 2 + 1];
    }
  }
  if (left >= kChunkTokens || simt::fault(simt::kFaultPaddingHasWeight)) return;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int r = 0; r < 4; ++r)
      if (8 * j + column + r % 2 >= left) u[j][r] = ptx::minus_infinity();
}

// The polynomial of 255 * 2^r, from power K on.
template <int K>
TFQ_DEVICE float exp2_polynomial(float r) {
  constexpr int kLast = sizeof(kExp2Coefficients) / sizeof(float) - 1;
  constexpr float kCoefficient = kExp2Coefficients[K];
  if constexpr (K == kLast) {
    return kCoefficient;
  } else {
    return ptx::fused_multiply_add(exp2_polynomial<K + 1>(r), r, kCoefficient);
  }
}

// A word whose lowest byte is rne(255 * 2^t) for t <= 0.
TFQ_DEVICE uint32_t softmax_weight(float t) {
  const float clamped = ptx::max_number(t, kExp2Min);
  const float shifted = clamped + kRoundToInteger;
  const float remainder = clamped - (shifted - kRoundToInteger);
  const uint32_t scaled = ptx::float_to_bits(exp2_polynomial<0>(remainder)) +
                          (ptx::float_to_bits(shifted) << 23);
  return ptx::float_to_bits(ptx::bits_to_float(scaled) + kRoundToInteger);
}

// The first operand of a product over 32 tokens, whose bytes are in the order of token_at().
template <typename Shape>
TFQ_DEVICE void compute_weights(const QueryRows<Shape>& query, const float (&largest)[2],
                                const float (&u)[4][4], uint32_t (&weights)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t bytes[4];
#pragma unroll
      for (int b = 0; b < 4; ++b)
        bytes[b] = softmax_weight((u[2 * i + b / 2][2 * half + b % 2] - largest[half]) *
                                  query.factor[half]);
      weights[2 * i + half] = ptx::pack_low_bytes(bytes[0], bytes[1], bytes[2], bytes[3]);
    }
  }
}

// Sums of a warp's rows: of weights times the value, whose columns are value_row()s, and of the weights,
// which are a product with ones.
template <typename Shape>
struct WeightedSums {
  int32_t value[Shape::kChannels / 8][4] = {};
  int32_t weights[4] = {};

  TFQ_DEVICE void add(const uint32_t (&w)[4], uint32_t stage, int chunk) {
    constexpr uint32_t kOnes = 0x01010101u;
    const uint32_t rows = stage + Shape::kValue + static_cast<uint32_t>(chunk * kChunkTokens) +
                          matrix_offset(Shape::kValuePitch);
#pragma unroll
    for (int pair = 0; pair < Shape::kChannels / 16; ++pair) {
      uint32_t b[4];
      ptx::load_matrix_x4(b, rows + static_cast<uint32_t>(16 * pair * Shape::kValuePitch));
      ptx::mma_u8s8(value[2 * pair], w, b[0], b[1]);
      ptx::mma_u8s8(value[2 * pair + 1], w, b[2], b[3]);
    }
    ptx::mma_u8s8(weights, w, kOnes, kOnes);
  }

  // To rows [first, first + 16) of head `head` of all images.
  TFQ_DEVICE void store(const AttentionLaunch& args, int head, int first) const {
    const int lane = simt::lane_index();
    const int image = head / args.heads, head_of_image = head % args.heads;
    const int rows = args.tokens + (simt::fault(simt::kFaultStoreBeyondRows) ? 1 : 0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + lane / 4 + 8 * half;
      const auto sum = static_cast<float>(weights[2 * half]);
      const int64_t target =
          ((int64_t{image} * args.tokens + row) * args.heads + head_of_image) * args.head_size;
#pragma unroll
      for (int pair = 0; pair < Shape::kChannels / 16; ++pair) {
        const int c = 16 * pair + lane % 4 * 4;
        if (row >= rows || c >= args.head_size) continue;
        float out[4];
        load_run(args.operands.value_scale + int64_t{head} * Shape::kChannels + c, out);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          out[i] = static_cast<float>(value[2 * pair + i / 2][2 * half + i % 2]) * (out[i] / sum);
        store_run(args.out, args.out_dtype, target + c, out);
      }
    }
  }
};

// grid = (tokens / kQueryTokens, batch * heads)
template <int Channels>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kAttentionThreads, AttentionShape<Channels>::kBlocks)
    attention_s8_sm80(TFQ_GRID_CONSTANT const AttentionLaunch args) {
  ptx::begin_kernel();
  using Shape = AttentionShape<Channels>;
  const auto head = static_cast<int>(simt::block_index().y);
  const int blocks = (args.kv_tokens + kKeyTokens - 1) / kKeyTokens;
  const int64_t kv_tokens = int64_t{blocks} * kKeyTokens;
  const int first = static_cast<int>(simt::block_index().x) * kQueryTokens + 16 * simt::warp_index();
  const QueryRows<Shape> query(
      args.operands, int64_t{head} * simt::grid_size().x * kQueryTokens + first);

  // Steps [0, blocks) are the key's blocks, for the largest logits; then come key and value together.
  const auto stage_of = [](int step) { return static_cast<uint32_t>(step % 2) * Shape::kStageBytes; };
  const auto queue = [&](int step) {
    if (step < 2 * blocks) {
      const uint32_t stage = stage_of(step);
      const bool second = step >= blocks;
      const int64_t token = int64_t{second ? step - blocks : step} * kKeyTokens;
      const int64_t row = head * kv_tokens + token;
      copy_rows<kKeyTokens, Shape::kDepth>(args.operands.key + row * Shape::kDepth, Shape::kDepth,
                                           stage, Shape::kKeyPitch);
      copy_rows<1, Shape::kFactsBytes>(args.operands.key_facts + 2 * row, 0, stage + Shape::kFacts, 0);
      if (second)
        copy_rows<Shape::kChannels, kKeyTokens>(
            args.operands.value + head * Shape::kChannels * kv_tokens + token, kv_tokens,
            stage + Shape::kValue, Shape::kValuePitch);
    }
    ptx::commit_copies();
  };
  // f(stage, chunk, tokens left) for the pieces of the key, at steps [begin, begin + blocks).
  const auto for_chunks = [&](int begin, const auto& f) {
    for (int block = 0; block < blocks; ++block) {
      const int step = begin + block;
      if (simt::fault(simt::kFaultRefillBeforeBarrier)) queue(step + 1);
      ptx::wait_copies<0>();
      // After it everybody sees this stage, and everybody has left the one that is refilled.
      if (!simt::fault(simt::kFaultNoBarrierAfterWait)) simt::sync_block();
      if (!simt::fault(simt::kFaultRefillBeforeBarrier)) queue(step + 1);
      for (int chunk = 0; chunk < kKeyTokens / kChunkTokens; ++chunk) {
        const int left = args.kv_tokens - block * kKeyTokens - chunk * kChunkTokens;
        if (left > 0) f(stage_of(step), chunk, left);
      }
    }
  };

  queue(0);
  float largest[2] = {ptx::minus_infinity(), ptx::minus_infinity()};
  for_chunks(0, [&](uint32_t stage, int chunk, int left) {
    float u[4][4];
    compute_logits(query, stage, chunk, left, u);
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) largest[r / 2] = ptx::max_number(largest[r / 2], u[j][r]);
  });
  if (!simt::fault(simt::kFaultLargestOfOwnTokens)) {
#pragma unroll
    for (float& value : largest) value = reduce_lanes<MaxOp, 4>(value);
  }

  WeightedSums<Shape> sums;
  for_chunks(blocks, [&](uint32_t stage, int chunk, int left) {
    float u[4][4];
    uint32_t weights[4];
    compute_logits(query, stage, chunk, left, u);
    compute_weights(query, largest, u, weights);
    sums.add(weights, stage, chunk);
  });
  sums.store(args, head, first);
}

}  // namespace tfq::cuda

#include "cpu/attention_s8/operands.h"

#include <emmintrin.h>

#include <cstring>
#include <limits>

#include "common/parallel.h"
#include "common/quant.h"
#include "cpu/element_type.h"
#include "cpu/prefetch.h"

namespace tfq::cpu {
namespace {

constexpr int kBytesSlot = 2;  // quantised rows before they are put in panels
constexpr auto kSignedZeroByte = static_cast<uint8_t>(kSignedZero);

// The channels of a head in row `row` of x (batch * tokens, heads * head_size).
const void* head_of_row(const AttentionArgs& args, const void* x, int64_t row, int64_t head) {
  return element_at(x, args.dtype, (row * args.heads + head) * args.head_size);
}

float magnitude(const float* range) { return -range[0] > range[1] ? -range[0] : range[1]; }

// target (16, 4) <- the 16 channels at each of four rows.
void interleave_rows(const uint8_t* rows, int64_t stride, int8_t* target) {
  const auto load = [&](int64_t i) {
    const auto* source = reinterpret_cast<const __m128i*>(rows + i * stride);
    return _mm_xor_si128(_mm_loadu_si128(source), _mm_set1_epi8(static_cast<char>(0x80)));
  };
  const __m128i a = load(0), b = load(1), c = load(2), d = load(3);
  const __m128i ab[2] = {_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)};
  const __m128i cd[2] = {_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)};
  auto* out = reinterpret_cast<__m128i*>(target);
  for (int i = 0; i < 2; ++i) {
    _mm_storeu_si128(out + 2 * i, _mm_unpacklo_epi16(ab[i], cd[i]));
    _mm_storeu_si128(out + 2 * i + 1, _mm_unpackhi_epi16(ab[i], cd[i]));
  }
}

}  // namespace

void prefetch_head(const AttentionArgs& args, const void* x, int64_t row, int64_t head) {
  prefetch_lines<0, 3>(head_of_row(args, x, row, head),
                       args.head_size * element_bytes(args.dtype));
}

void pack_key(const AttentionArgs& args, const OperandKernels& kernels, int64_t batch,
              int64_t token_first, const AttentionOperands& out) {
  const int64_t depth = out.sizes.key_depth;
  auto* row = static_cast<uint8_t*>(thread_scratch(kBytesSlot, static_cast<size_t>(depth)));
  std::memset(row, kSignedZeroByte, static_cast<size_t>(depth));
  for (int64_t token = token_first; token < token_first + kPanelColumns; ++token) {
    const bool padding = token >= args.kv_tokens;
    if (padding) std::memset(row, kSignedZeroByte, static_cast<size_t>(depth));
    for (int64_t head = 0; head < args.heads; ++head) {
      const HeadOperands operands = out.head(batch * args.heads + head);
      float scale = 0.0f;
      if (!padding) {
        const void* x = head_of_row(args, args.key, batch * args.kv_tokens + token, head);
        float range[2] = {0.0f, 0.0f};
        kernels.quantize.range(x, args.dtype, args.head_size, range);
        scale = symmetric_scale(magnitude(range));
        kernels.quantize.quantize(x, args.dtype, args.head_size, 1.0f / scale, kSignedZero, row);
      }
      int8_t* target = operands.key + token_first * depth + (token - token_first) * kQuad;
      int32_t sum = 0;
      for (int64_t quad = 0; quad < depth / kQuad; ++quad, target += kQuadBytes) {
        for (int64_t i = 0; i < kQuad; ++i) {
          target[i] = static_cast<int8_t>(row[quad * kQuad + i] ^ kSignedZeroByte);
          sum += target[i];
        }
      }
      operands.key_sum[token] = static_cast<float>(sum);
      operands.key_scale[token] = scale;
      operands.key_offset[token] = padding ? -std::numeric_limits<float>::infinity() : 0.0f;
    }
  }
}

void pack_value(const AttentionArgs& args, const OperandKernels& kernels, int64_t batch,
                int64_t head, const AttentionOperands& operands) {
  const HeadSizes& sizes = operands.sizes;
  const HeadOperands out = operands.head(batch * args.heads + head);
  const int64_t channels = sizes.padded_channels;
  const auto row = [&](int64_t token) {
    return head_of_row(args, args.value, batch * args.kv_tokens + token, head);
  };
  const size_t row_bytes = static_cast<size_t>(channels);
  auto* r = static_cast<float*>(
      thread_scratch(kBytesSlot, row_bytes * sizeof(float) + kQuad * row_bytes));
  auto* bytes = reinterpret_cast<uint8_t*>(r + channels);
  for (int64_t c = 0; c < channels; ++c) out.value_scale[c] = 0.0f;
  for (int64_t token = 0; token < args.kv_tokens; ++token)
    kernels.attention.magnitudes(row(token), args.dtype, args.head_size, out.value_scale);
  for (int64_t c = 0; c < channels; ++c) {
    out.value_scale[c] = symmetric_scale(-out.value_scale[c]);
    r[c] = 1.0f / out.value_scale[c];
  }
  for (int64_t first = 0; first < sizes.value_depth; first += kQuad) {
    std::memset(bytes, kSignedZeroByte, kQuad * row_bytes);
    for (int64_t token = first; token < min_of(args.kv_tokens, first + kQuad); ++token)
      kernels.attention.quantize_channels(row(token), args.dtype, args.head_size, r,
                                          bytes + (token - first) * channels);
    for (int64_t c = 0; c < channels; c += kPanelColumns)
      interleave_rows(bytes + c, channels,
                      out.value + c * sizes.value_depth + first * kPanelColumns);
  }
}

QueryRow quantize_query(const AttentionArgs& args, const OperandKernels& kernels, int64_t batch,
                        int64_t head, int64_t token, const HeadSizes& sizes, uint8_t* out) {
  const void* x = head_of_row(args, args.query, batch * args.tokens + token, head);
  float range[2] = {0.0f, 0.0f}, qparams[kQParamsWidth];
  kernels.quantize.range(x, args.dtype, args.head_size, range);
  qparams_from_range(range[0], range[1], qparams);
  kernels.quantize.quantize(x, args.dtype, args.head_size, qparams[1], qparams[2], out);
  std::memset(out + args.head_size, 0, static_cast<size_t>(sizes.key_depth - args.head_size));
  return {qparams[0], qparams[2]};
}

}  // namespace tfq::cpu

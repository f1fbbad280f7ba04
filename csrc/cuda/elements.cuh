// Runs of neighbouring elements between registers and global memory, as float32. The address of a
// run is a multiple of its size, or of 16 bytes if that is less.
#pragma once

#include "common/api.h"
#include "common/quant.h"
#include "cuda/ptx.cuh"

namespace tfq::cuda {

// Words as one access of at most 16 bytes.
template <int Words>
struct alignas(4 * Words) Packet {
  uint32_t word[Words];
};

template <int Words>
TFQ_DEVICE void load_words(const void* source, uint32_t (&words)[Words]) {
  constexpr int kSize = Words < 4 ? Words : 4;
  const auto* packets = static_cast<const Packet<kSize>*>(source);
#pragma unroll
  for (int i = 0; i < Words / kSize; ++i) {
    const Packet<kSize> packet = packets[i];
#pragma unroll
    for (int w = 0; w < kSize; ++w) words[i * kSize + w] = packet.word[w];
  }
}

template <int Words>
TFQ_DEVICE void store_words(void* target, const uint32_t (&words)[Words]) {
  constexpr int kSize = Words < 4 ? Words : 4;
  auto* packets = static_cast<Packet<kSize>*>(target);
#pragma unroll
  for (int i = 0; i < Words / kSize; ++i) {
    Packet<kSize> packet;
#pragma unroll
    for (int w = 0; w < kSize; ++w) packet.word[w] = words[i * kSize + w];
    packets[i] = packet;
  }
}

template <int Count>
TFQ_DEVICE void load_run(const float* source, float (&out)[Count]) {
  uint32_t words[Count];
  load_words(source, words);
#pragma unroll
  for (int i = 0; i < Count; ++i) out[i] = ptx::bits_to_float(words[i]);
}

template <int Count>
TFQ_DEVICE void load_run(const void* source, DType dtype, int64_t index, float (&out)[Count]) {
  if (dtype == DType::kFloat32) {
    load_run(static_cast<const float*>(source) + index, out);
    return;
  }
  uint32_t words[Count / 2];
  load_words(static_cast<const uint16_t*>(source) + index, words);
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const auto half = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
    out[i] = dtype == DType::kBFloat16 ? bf16_to_float(half) : ptx::fp16_to_float(half);
  }
}

// Stores float32, bfloat16 or float16.
template <int Count>
TFQ_DEVICE void store_run(void* target, DType dtype, int64_t index, const float (&x)[Count]) {
  if (dtype == DType::kFloat32) {
    uint32_t words[Count];
#pragma unroll
    for (int i = 0; i < Count; ++i) words[i] = ptx::float_to_bits(x[i]);
    store_words(static_cast<float*>(target) + index, words);
    return;
  }
  uint32_t words[Count / 2];
#pragma unroll
  for (int i = 0; i < Count / 2; ++i)
    words[i] = dtype == DType::kBFloat16 ? ptx::pack_bf16(x[2 * i], x[2 * i + 1])
                                         : ptx::pack_fp16(x[2 * i], x[2 * i + 1]);
  store_words(static_cast<uint16_t*>(target) + index, words);
}

// quant.h's quantize_value of four values, in the instructions of the card: the conversion to an
// integer turns NaN into 0 and saturates, the upper bound keeps z from overflowing it.
TFQ_DEVICE uint32_t quantize4(const float* x, float r, float z) {
  constexpr float kBeyondAll = 65536.0f;
  const auto zero_point = static_cast<int32_t>(z);
  int32_t q[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    q[i] = ptx::round_to_int(ptx::min_nan(x[i] * r, kBeyondAll)) + zero_point;
  return ptx::pack_u8(q[0], q[1], q[2], q[3]);
}

template <int Count>
TFQ_DEVICE void store_quantized(uint8_t* target, float r, float z, const float (&x)[Count]) {
  if constexpr (Count == 2) {
    const float padded[4] = {x[0], x[1], 0.0f, 0.0f};
    *reinterpret_cast<uint16_t*>(target) = static_cast<uint16_t>(quantize4(padded, r, z));
  } else {
    uint32_t words[Count / 4];
#pragma unroll
    for (int w = 0; w < Count / 4; ++w) words[w] = quantize4(x + 4 * w, r, z);
    store_words(target, words);
  }
}

}  // namespace tfq::cuda

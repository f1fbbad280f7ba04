// GroupNorm kernels over a vector type V (cpu/vector_avx512.h); NHWC, a vector along the channels.
//
// Statistics: 3 instructions for 16 values, limited by the cache the input comes from. SiLU: some
// 30 for 16 values on two ports, 0.9 cycles a value.
#pragma once

#include "cpu/element_type.h"
#include "cpu/norm_act/activation.h"
#include "cpu/norm_act/norm_act.h"

namespace tfq::cpu {
namespace {

// N whole vectors of channels, or one with only `count` lanes (Whole = false).
template <typename V, int N, bool Whole>
struct ChannelBlock {
  using Float = typename V::Float;
  int64_t count;

  template <typename T>
  Float load(const T* x, int i) const {
    return Whole ? V::load(x + i * V::kWidth) : V::load_first(x, count);
  }
  void store(float* out, int i, Float x) const {
    if (Whole) {
      V::store(out + i * V::kWidth, x);
    } else {
      V::store_first(out, x, count);
    }
  }

  // Sums over the pixels of N vectors at a time: enough independent chains to hide the latency.
  template <typename T>
  void statistics(const T* x, int64_t pixels, int64_t pixel_stride, float* partial,
                  int64_t partial_stride) const {
    Float first[N], sum[N], square[N];
    for (int i = 0; i < N; ++i) {
      first[i] = load(x, i);
      sum[i] = square[i] = V::set(0.0f);
    }
    for (int64_t p = 0; p < pixels; ++p) {
      for (int i = 0; i < N; ++i) {
        const Float d = V::sub(load(x + p * pixel_stride, i), first[i]);
        sum[i] = V::add(sum[i], d);
        square[i] = V::fma(d, d, square[i]);
      }
    }
    for (int i = 0; i < N; ++i) {
      store(partial, i, first[i]);
      store(partial + partial_stride, i, sum[i]);
      store(partial + 2 * partial_stride, i, square[i]);
    }
  }

  template <typename T>
  void affine(const T* x, const float* scale, const float* offset, float* out) const {
    for (int i = 0; i < N; ++i) store(out, i, V::fma(load(x, i), load(scale, i), load(offset, i)));
  }
};

// f(block, first channel) for blocks that cover `channels`.
template <typename V, typename F>
inline void for_channel_blocks(int64_t channels, const F& f) {
  constexpr int64_t W = V::kWidth;
  int64_t c = 0;
  for (; c + 4 * W <= channels; c += 4 * W) f(ChannelBlock<V, 4, true>{W}, c);
  for (; c + W <= channels; c += W) f(ChannelBlock<V, 1, true>{W}, c);
  if (c < channels) f(ChannelBlock<V, 1, false>{channels - c}, c);
}

template <typename V>
struct GroupNormBody {
  static void statistics(const void* x, DType dtype, int64_t pixels, int64_t channels,
                         float* partial, int64_t partial_stride) {
    with_elements(x, dtype, [&](const auto* elements) {
      for_channel_blocks<V>(channels, [&](auto block, int64_t c) {
        block.statistics(elements + c, pixels, channels, partial + c, partial_stride);
      });
    });
  }

  static void affine(const void* x, DType dtype, int64_t pixels, int64_t channels,
                     const float* scale, const float* offset, float* out, int64_t out_stride) {
    with_elements(x, dtype, [&](const auto* elements) {
      for (int64_t p = 0; p < pixels; ++p)
        for_channel_blocks<V>(channels, [&](auto block, int64_t c) {
          block.affine(elements + p * channels + c, scale + c, offset + c,
                       out + p * out_stride + c);
        });
    });
  }

  static void silu(float* x, int64_t n) {
    constexpr int64_t W = V::kWidth;
    constexpr int N = V::kUnroll;
    int64_t i = 0;
    for (; i + N * W <= n; i += N * W) {
      typename V::Float values[N];
      for (int v = 0; v < N; ++v) values[v] = V::load(x + i + v * W);
      tfq::cpu::silu<V>(values);
      for (int v = 0; v < N; ++v) V::store(x + i + v * W, values[v]);
    }
    for (; i < n; i += W) {
      typename V::Float values[1] = {V::load_first(x + i, n - i)};
      tfq::cpu::silu<V>(values);
      V::store_first(x + i, values[0], n - i);
    }
  }

  static constexpr group_norm_kernel kKernel = {statistics, affine, silu};
};

}  // namespace
}  // namespace tfq::cpu

// Random problems of the integer products, and what their left operand is: of tests/simt and tests/cpu.
#pragma once

#include <random>

#include "common/api.h"

namespace tfq::testing {

inline std::mt19937_64 generator;
inline int64_t pick(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(generator() % static_cast<uint64_t>(high - low + 1));
}
inline bool toss() { return pick(0, 1) == 1; }

struct Problem {
  bool conv;
  int64_t m, n, k, groups;
  ConvGeometry geometry;
};

// The rest of a convolution whose operands' sizes, kernel and padding above and to the left are set; below
// and to the right it has at most `most` pixels.
inline void set_outputs(Problem& p, int64_t most) {
  ConvGeometry& g = p.geometry;
  const auto out = [&](int64_t in, int64_t kernel, int64_t stride, int64_t pads) {
    return (in * g.upsample + pads - kernel) / stride + 1;
  };
  p.conv = true;
  g.out_h = out(g.in_h, g.kernel_h, g.stride_h, g.pad_top + pick(0, most));
  g.out_w = out(g.in_w, g.kernel_w, g.stride_w, g.pad_left + pick(0, most));
  p.m = g.batch * g.out_h * g.out_w;
  p.n = g.out_channels;
  p.k = g.kernel_h * g.kernel_w * g.channels;
  p.groups = toss() ? g.batch : 1;
}

// Value k of row `row` of the left operand, less the zero-point.
inline int32_t centred(const Problem& p, const uint8_t* x, int32_t zero, int64_t row, int64_t k) {
  if (!p.conv) return x[row * p.k + k] - zero;
  const ConvGeometry& g = p.geometry;
  const int64_t channel = k % g.channels, tap = k / g.channels;
  const int64_t image = row / (g.out_h * g.out_w), pixel = row % (g.out_h * g.out_w);
  const int64_t y = pixel / g.out_w * g.stride_h - g.pad_top + tap / g.kernel_w;
  const int64_t xx = pixel % g.out_w * g.stride_w - g.pad_left + tap % g.kernel_w;
  if (y < 0 || xx < 0 || y >= g.in_h * g.upsample || xx >= g.in_w * g.upsample) return 0;
  const int64_t at = (image * g.in_h + y / g.upsample) * g.in_w + xx / g.upsample;
  return x[at * g.channels + channel] - zero;
}

}  // namespace tfq::testing

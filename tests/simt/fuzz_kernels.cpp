// Random ragged problems under the sanitizers, every operand in a heap block of exactly its size:
//
//   fuzz_kernels SECONDS SEED [FAULT]
//
// Results are compared with plain loops. With a FAULT (simt.h) the program is expected to fail.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "check.h"
#include "common/quant.h"
#include "cuda/cuda.h"
#include "cuda/simt.h"

namespace {

using namespace tfq;

std::mt19937_64 generator;
int64_t pick(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(generator() % static_cast<uint64_t>(high - low + 1));
}

// Values in a block of their own: the sanitizer sees an access one byte beyond.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t n) : size(n) {
    void* block = nullptr;
    if (posix_memalign(&block, 16, static_cast<size_t>(n) * sizeof(T))) std::abort();
    data = static_cast<T*>(block);
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  int64_t size;
  T* data;
};

template <typename T>
void fill(Buffer<T>& buffer, int64_t low, int64_t high) {
  for (int64_t i = 0; i < buffer.size; ++i) buffer.data[i] = static_cast<T>(pick(low, high));
}
void fill_uniform(Buffer<float>& buffer, float scale) {
  for (int64_t i = 0; i < buffer.size; ++i)
    buffer.data[i] = scale * static_cast<float>(pick(-1000, 1000)) / 1000.0f;
}

// Weights (n, k) to the layout of product_args.h.
void pack(const Buffer<int8_t>& weight, int64_t n, int64_t k, Buffer<int8_t>& packed) {
  std::memset(packed.data, 0, static_cast<size_t>(packed.size));
  for (int64_t channel = 0; channel < n; ++channel) {
    const int64_t c = channel % 32;
    const int64_t row = channel - c + 8 * (c % 8 / 2) + 2 * (c / 8) + c % 2;
    std::memcpy(packed.data + row * cuda::packed_depth(k), weight.data + channel * k,
                static_cast<size_t>(k));
  }
}

struct Problem {
  bool conv;
  int64_t m, n, k, groups;
  ConvGeometry geometry;
};

Problem random_gemm() {
  Problem p{};
  p.groups = pick(1, 3);
  p.m = p.groups * pick(1, 60);
  p.n = 8 * pick(1, 24);
  p.k = 16 * pick(1, 20);
  return p;
}

Problem random_conv() {
  Problem p{};
  p.conv = true;
  ConvGeometry& g = p.geometry;
  g.batch = pick(1, 3);
  g.channels = 16 * pick(1, 5);
  g.out_channels = 8 * pick(1, 24);
  g.kernel_h = pick(1, 3);
  g.kernel_w = pick(1, 3);
  g.stride_h = pick(1, 2);
  g.stride_w = pick(1, 2);
  g.pad_top = pick(0, 2);
  g.pad_left = pick(0, 2);
  g.upsample = pick(1, 2);
  g.in_h = pick(2, 7);
  g.in_w = pick(2, 7);
  const auto out = [&](int64_t in, int64_t kernel, int64_t stride, int64_t pads) {
    return (in * g.upsample + pads - kernel) / stride + 1;
  };
  g.out_h = out(g.in_h, g.kernel_h, g.stride_h, g.pad_top + pick(0, 1));
  g.out_w = out(g.in_w, g.kernel_w, g.stride_w, g.pad_left + pick(0, 1));
  p.m = g.batch * g.out_h * g.out_w;
  p.n = g.out_channels;
  p.k = g.kernel_h * g.kernel_w * g.channels;
  p.groups = pick(0, 1) ? g.batch : 1;
  return p;
}

// Value k of row `row` of A, less the zero-point.
int32_t centred(const Problem& p, const Buffer<uint8_t>& x, int32_t zero, int64_t row, int64_t k) {
  if (!p.conv) return x.data[row * p.k + k] - zero;
  const ConvGeometry& g = p.geometry;
  const int64_t channel = k % g.channels, tap = k / g.channels;
  const int64_t image = row / (g.out_h * g.out_w), pixel = row % (g.out_h * g.out_w);
  const int64_t y = pixel / g.out_w * g.stride_h - g.pad_top + tap / g.kernel_w;
  const int64_t xx = pixel % g.out_w * g.stride_w - g.pad_left + tap % g.kernel_w;
  if (y < 0 || xx < 0 || y >= g.in_h * g.upsample || xx >= g.in_w * g.upsample) return 0;
  const int64_t at = (image * g.in_h + y / g.upsample) * g.in_w + xx / g.upsample;
  return x.data[at * g.channels + channel] - zero;
}

void run_product(const Problem& p) {
  const ConvGeometry& g = p.geometry;
  Buffer<uint8_t> x(p.conv ? g.batch * g.in_h * g.in_w * g.channels : p.m * p.k);
  Buffer<int8_t> weight(p.n * p.k), packed(cuda::packed_rows(p.n) * cuda::packed_depth(p.k));
  Buffer<float> weight_scale(p.n), bias(p.n), qparams(3 * p.groups), temporal(p.groups * p.n);
  Buffer<int32_t> weight_sum(p.n), workspace(1 << 19);
  Buffer<float> residual(p.m * p.n), out(p.m * p.n);
  Buffer<uint8_t> second(p.m * p.n);
  fill(x, 0, 255);
  fill(weight, -127, 127);
  fill_uniform(weight_scale, 0.01f);
  fill_uniform(bias, 2.0f);
  fill_uniform(temporal, 2.0f);
  fill_uniform(residual, 4.0f);
  std::memset(workspace.data, 0, static_cast<size_t>(workspace.size) * sizeof(int32_t));
  for (int64_t i = 0; i < p.groups; ++i) {
    const float s = 0.001f * static_cast<float>(pick(1, 60));
    qparams.data[3 * i] = s;
    qparams.data[3 * i + 1] = 1.0f / s;
    qparams.data[3 * i + 2] = static_cast<float>(pick(0, 255));
  }
  for (int64_t c = 0; c < p.n; ++c) {
    weight_sum.data[c] = 0;
    for (int64_t k = 0; k < p.k; ++k) weight_sum.data[c] += weight.data[c * p.k + k];
  }
  pack(weight, p.n, p.k, packed);

  const bool with_temporal = pick(0, 1), with_residual = pick(0, 1);
  Epilogue e{};
  e.input = {qparams.data, 3};
  e.rows_per_group = p.m / p.groups;
  e.weight_scale = weight_scale.data;
  e.weight_sum = weight_sum.data;
  e.bias = bias.data;
  e.temporal = with_temporal ? temporal.data : nullptr;
  e.temporal_stride = p.n;
  e.temporal_table_rows = p.groups;
  e.rows_per_sample = p.m / p.groups;
  e.residual = with_residual ? residual.data : nullptr;
  e.out = out.data;
  e.quantized_out = second.data;
  e.requant = {qparams.data, 3};
  const int splits[] = {1, 1, 2, 4};
  int parts = splits[pick(0, 3)];
  if ((p.k + 63) / 64 < parts) parts = 1;
  const cuda::ProductOptions options{workspace.data, workspace.size,
                                     static_cast<int>(pick(0, cuda::kTileCount - 1)), parts};
  if (p.conv) {
    cuda::conv2d_s8({x.data, g, {packed.data, nullptr}, e}, nullptr, 0, options, {0, nullptr});
  } else {
    cuda::gemm_s8({x.data, p.m, p.n, p.k, {packed.data, nullptr}, e}, options, {0, nullptr});
  }
  for (int64_t row = 0; row < p.m; ++row) {
    const int64_t group = row / e.rows_per_group;
    const float* q = qparams.data + 3 * group;
    for (int64_t c = 0; c < p.n; ++c) {
      int32_t sum = 0;
      for (int64_t k = 0; k < p.k; ++k)
        sum += centred(p, x, static_cast<int32_t>(q[2]), row, k) * weight.data[c * p.k + k];
      const float offset =
          with_temporal ? bias.data[c] + temporal.data[group * p.n + c] : bias.data[c];
      float y = std::fma(static_cast<float>(sum), q[0] * weight_scale.data[c], offset);
      if (with_residual) y = y + residual.data[row * p.n + c];
      CHECK(out.data[row * p.n + c] == y);
      CHECK(second.data[row * p.n + c] == quantize_value(y, q[1], q[2]));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: fuzz_kernels SECONDS SEED [FAULT]\n"), 2;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  generator.seed(static_cast<uint64_t>(std::atoll(argv[2])));
  int problems = 0;
  do {
    simt::options() = {static_cast<simt::Order>(pick(0, 3)), pick(0, 1) == 1, generator(),
                       argc > 3 ? std::atoi(argv[3]) : 0};
    run_product(problems % 2 ? random_conv() : random_gemm());
    ++problems;
  } while (tfq::testing::failures == 0 && std::chrono::steady_clock::now() < end);
  std::printf("fuzz_kernels: %d problems, seed %s\n", problems, argv[2]);
  return tfq::testing::finish("fuzz_kernels");
}

// Random ragged problems under the sanitizers, every operand in a heap block of exactly its size:
//
//   fuzz_kernels SECONDS SEED [FAULT]
//
// Results are compared with plain loops. With a FAULT (simt.h) the program is expected to fail.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "common/quant.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cuda/attention_args.h"
#include "cuda/cuda.h"
#include "cuda/simt.h"
#include "device_host.h"
#include "fuzz.h"

namespace {

using namespace tfq;
using namespace tfq::testing;

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
  set_outputs(p, 1);
  return p;
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
  if ((p.k + cuda::kBlockKSm90 - 1) / cuda::kBlockKSm90 < parts) parts = 1;
  const int64_t taps = p.conv ? g.kernel_h * g.kernel_w : 1, channels = p.k / taps;
  Buffer<int32_t> tap_sums(taps * p.n);
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t c = 0; c < p.n; ++c) {
      int32_t& sum = tap_sums.data[tap * p.n + c];
      sum = 0;
      for (int64_t k = 0; k < channels; ++k) sum += weight.data[c * p.k + tap * channels + k];
    }
  const bool upsamples = p.conv && g.upsample == 2, enlarges = upsamples && pick(0, 1);
  Buffer<uint8_t> enlarged(enlarges ? 4 * g.batch * g.in_h * g.in_w * g.channels : 0);
  const int tiles = upsamples && !enlarges ? cuda::kTileCountSm80 : cuda::kTileCount;
  const cuda::ProductOptions options{workspace.data, workspace.size,
                                     static_cast<int>(pick(0, tiles - 1)), parts, tap_sums.data,
                                     enlarges ? enlarged.data : nullptr};
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
        sum += centred(p, x.data, static_cast<int32_t>(q[2]), row, k) * weight.data[c * p.k + k];
      const float offset =
          with_temporal ? bias.data[c] + temporal.data[group * p.n + c] : bias.data[c];
      float y = std::fma(static_cast<float>(sum), q[0] * weight_scale.data[c], offset);
      if (with_residual) y = y + residual.data[row * p.n + c];
      CHECK(out.data[row * p.n + c] == y);
      CHECK(second.data[row * p.n + c] == quantize_value(y, q[1], q[2]));
    }
  }
}

// Of the activation kernels the memory is what is looked at; plain quantisation is compared too.
void run_activations() {
  const int64_t batch = pick(1, 3), pixels = pick(1, 150), groups = pick(1, 4);
  const int64_t channels = 8 * groups * pick(1, 6),
                channels2 = pick(0, 1) * 8 * groups * pick(1, 3);
  const int64_t total = channels + channels2;
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  const DType dtype = dtypes[pick(0, 2)];
  const int64_t size = dtype == DType::kFloat32 ? 2 : 1;  // in 16-bit words; any bits are a value
  Buffer<uint16_t> x(batch * pixels * channels * size), x2(batch * pixels * channels2 * size + 8);
  Buffer<float> affine(total), qparams(3 * batch * pixels);
  Buffer<uint8_t> out(batch * pixels * total);
  fill(x, 0, 65535);
  fill(x2, 0, 65535);
  fill_uniform(affine, 2.0f);
  float* dynamic = pick(0, 1) ? qparams.data : nullptr;
  for (int64_t i = 0; i < batch * pixels; ++i) {
    qparams.data[3 * i] = 0.5f;
    qparams.data[3 * i + 1] = 2.0f;
    qparams.data[3 * i + 2] = static_cast<float>(pick(0, 255));
  }
  Buffer<float> workspace(cuda::image_workspace(batch, pixels, total));
  cuda::group_norm_silu_quantize({x.data,
                                  channels2 ? x2.data : nullptr,
                                  dtype,
                                  batch,
                                  pixels,
                                  channels,
                                  channels2,
                                  groups,
                                  1e-5f,
                                  pick(0, 1) == 1,
                                  affine.data,
                                  affine.data,
                                  0,
                                  {qparams.data, 3},
                                  dynamic,
                                  out.data},
                                 workspace.data, {0, nullptr});
  const int64_t rows = batch * pixels;
  Buffer<uint8_t> row_out(rows * channels);
  cuda::layer_norm_quantize({x.data,
                             dtype,
                             rows,
                             channels,
                             1e-5f,
                             affine.data,
                             nullptr,
                             {qparams.data, 3},
                             1,
                             dynamic,
                             row_out.data},
                            {0, nullptr});
  if (channels % 16 == 0)
    cuda::geglu_quantize(
        {x.data, dtype, rows, channels / 2, {qparams.data, 3}, 1, dynamic, row_out.data},
        {0, nullptr});
  const int64_t group_size = pick(0, 1) ? channels : pixels * channels;
  const int64_t count = rows * channels / group_size;
  Buffer<float> row_workspace(cuda::image_workspace(count, 1, group_size));
  cuda::quantize({x.data, dtype, count, group_size, {qparams.data, 3}, dynamic, row_out.data},
                 row_workspace.data, {0, nullptr});
  if (dtype != DType::kFloat32) return;
  const auto* values = reinterpret_cast<const float*>(x.data);
  for (int64_t i = 0; i < rows * channels; ++i) {
    const float* q = qparams.data + 3 * (i / group_size);
    CHECK(row_out.data[i] == quantize_value(values[i], q[1], q[2]));
  }
}

void run_gather() {
  const int64_t table_rows = pick(1, 5), width = pick(1, 600), features = pick(1, 9);
  const int64_t count = pick(1, 4);
  Buffer<uint8_t> table(table_rows * width);
  Buffer<float> qparams(table_rows * features * 2), out(count * width);
  Buffer<int64_t> offsets(features + 1), rows(count);
  fill(table, 0, 255);
  fill_uniform(qparams, 1.0f);
  fill(rows, -1, table_rows);  // the ends are not in the table
  fill(offsets, 0, width);
  std::sort(offsets.data, offsets.data + features + 1);
  offsets.data[0] = 0;
  offsets.data[features] = width;
  cuda::temporal_gather_dequantize({table.data, table_rows, width, qparams.data, offsets.data,
                                    features, rows.data, count, out.data},
                                   {0, nullptr});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows.data[i];
    for (int64_t f = 0; f < features; ++f) {
      for (int64_t c = offsets.data[f]; c < offsets.data[f + 1]; ++c) {
        const float y = out.data[i * width + c];
        if (row < 0 || row >= table_rows) {
          CHECK(y != y);
        } else {
          const float* q = qparams.data + 2 * (row * features + f);
          CHECK(y == (static_cast<float>(table.data[row * width + c]) - q[1]) * q[0]);
        }
      }
    }
  }
}

// A weight in the CPU's layout; every byte of it is a value, those that pad it too.
void run_dequantize() {
  const int64_t n = pick(1, 40), k = pick(0, 1) ? 8 * pick(1, 20) : pick(1, 160);
  const bool four_bits = pick(0, 1);
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  const DType dtype = dtypes[pick(0, 2)];
  Buffer<uint8_t> packed(cpu::packed_bytes(n, k) / (four_bits ? 2 : 1)), zero_point(n);
  Buffer<float> scale(n);
  Buffer<uint16_t> out(n * k * (dtype == DType::kFloat32 ? 2 : 1));
  fill(packed, 0, 255);
  fill(zero_point, 0, 15);
  fill_uniform(scale, 1.0f);
  cuda::dequantize_weight(
      {{packed.data, four_bits ? zero_point.data : nullptr}, n, k, scale.data, out.data, dtype},
      {0, nullptr});
  if (dtype != DType::kFloat32) return;
  const auto* values = reinterpret_cast<const float*>(out.data);
  for (int64_t row = 0; row < n; ++row)
    for (int64_t i = 0; i < k; ++i) {
      const int64_t offset = cpu::packed_offset(row, i, k);
      int w = static_cast<int8_t>(packed.data[four_bits ? 0 : offset]);
      if (four_bits) {
        const cpu::NibblePosition position = cpu::nibble_position(offset);
        w = (packed.data[position.byte] >> position.shift & 15) - zero_point.data[row];
      }
      CHECK(values[row * k + i] == static_cast<float>(w) * scale.data[row]);
    }
}

// The memory is what is looked at, and that an output is a mean of values; bits are compared elsewhere.
void run_attention() {
  const int64_t batch = pick(1, 2), heads = pick(1, 3), tokens = pick(1, 150);
  const int64_t kv_tokens = pick(1, 150), head_size = 8 * pick(1, 32);
  const int64_t width = heads * head_size;
  Buffer<float> query(batch * tokens * width), key(batch * kv_tokens * width);
  Buffer<float> value(batch * kv_tokens * width), out(batch * tokens * width);
  fill_uniform(query, 3.0f);
  fill_uniform(key, 2.0f);
  fill_uniform(value, 1.0f);
  AttentionArgs args{query.data, key.data,  value.data, DType::kFloat32, batch,    tokens,
                     kv_tokens,  heads,     head_size,  0.2f,            out.data, DType::kFloat32};
  Buffer<uint8_t> workspace(cuda::AttentionSizes(args).bytes());
  std::memset(workspace.data, 0xA5, static_cast<size_t>(workspace.size));
  cuda::attention_s8(args, workspace.data, {0, nullptr});
  for (int64_t i = 0; i < out.size; ++i) CHECK(std::fabs(out.data[i]) <= 1.0001f);
  Buffer<uint16_t> halves(out.size);
  args.out = halves.data;
  args.out_dtype = DType::kBFloat16;
  cuda::attention_s8(args, workspace.data, {0, nullptr});
  for (int64_t i = 0; i < out.size; ++i) CHECK(halves.data[i] == float_to_bf16(out.data[i]));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: fuzz_kernels SECONDS SEED [FAULT]\n"), 2;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  generator.seed(static_cast<uint64_t>(std::atoll(argv[2])));
  // A Hopper, which can run all tiles, of so few multiprocessors that a block takes several.
  cuda::simulated_device() = {90, 2, 232448, 233472, true};
  int problems = 0;
  do {
    simt::options() = {static_cast<simt::Order>(pick(0, 3)), pick(0, 1) == 1, generator(),
                       argc > 3 ? std::atoi(argv[3]) : 0};
    run_product(problems % 2 ? random_conv() : random_gemm());
    run_activations();
    run_gather();
    run_dequantize();
    run_attention();
    ++problems;
  } while (tfq::testing::failures == 0 && std::chrono::steady_clock::now() < end);
  std::printf("fuzz_kernels: %d problems, seed %s\n", problems, argv[2]);
  return tfq::testing::finish("fuzz_kernels");
}

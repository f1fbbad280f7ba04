// Random ragged problems on every instruction-set level under the sanitizers:
//
//   fuzz_kernels SECONDS SEED [MISSING]
//
// Levels must agree bit for bit, and products with plain loops. With MISSING, operands lack that many of their
// elements, and the program is expected to fail.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>

#include "blocks.h"
#include "common/quant.h"
#include "cpu/attention_s8/attention_s8.h"
#include "cpu/conv2d_s8/conv2d_s8.h"
#include "cpu/dequantize_weight/dequantize_weight.h"
#include "cpu/element_type.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/quantize/quantize.h"
#include "cpu/resnet_block/resnet_block.h"
#include "cpu/temporal_gather/temporal_gather.h"

namespace {

using namespace tfq;
using namespace tfq::testing;

DType random_float() { return toss() ? DType::kFloat32 : DType::kBFloat16; }

// Values of a float type; of any bits where `any`, else moderate ones.
struct Floats {
  Floats(int64_t count, DType type, bool any = false)
      : dtype(type), words(count * (type == DType::kFloat32 ? 2 : 1), 0) {
    fill(words, 0, 65535);
    for (int64_t i = 0; i < count && !any; ++i) {
      const float value = uniform(3.0f);
      if (type == DType::kFloat32) {
        std::memcpy(words.data + 2 * i, &value, sizeof value);
      } else {
        words.data[i] = float_to_bf16(value);
      }
    }
  }
  float at(int64_t i) const {
    if (dtype == DType::kBFloat16) return bf16_to_float(words.data[i]);
    float value;
    std::memcpy(&value, words.data + 2 * i, sizeof value);
    return value;
  }

  DType dtype;
  Block<uint16_t> words;
};

void fill_qparams(Block<float>& qparams) {
  for (int64_t i = 0; i + 2 < qparams.size; i += 3) {
    const float s = 0.001f * static_cast<float>(pick(1, 60));
    qparams.data[i] = s;
    qparams.data[i + 1] = 1.0f / s;
    qparams.data[i + 2] = static_cast<float>(pick(0, 255));
  }
}

// Packed weights (n, k), of 8 bits or 4, and what belongs to them.
struct Weight {
  Weight(int64_t rows, int64_t depth)
      : n(rows),
        k(depth),
        four_bits(toss()),
        integers(n * k, 0),
        packed(cpu::packed_bytes(n, k) / (four_bits ? 2 : 1)),
        zero_point(n),
        scale(n),
        bias(n),
        sum(n) {
    fill(zero_point, 0, 15);
    fill_uniform(scale, 0.01f);
    fill_uniform(bias, 2.0f);
    Block<uint8_t> q(n * k, 0), unpacked(n * k, 0);
    Block<uint8_t> whole(cpu::packed_bytes(n, k) / (four_bits ? 2 : 1), 0), z(n, 0);
    Block<int32_t> sums(n, 0);
    for (int64_t i = 0; i < n; ++i) z.data[i] = static_cast<uint8_t>(pick(0, 15));
    if (four_bits) {
      fill(q, 0, 15);
      cpu::pack_weight_s4(q.data, z.data, n, k, whole.data, sums.data);
      cpu::unpack_weight_s4(whole.data, n, k, unpacked.data);
      for (int64_t i = 0; i < n * k; ++i)
        integers.data[i] = static_cast<int8_t>(q.data[i] - z.data[i / k]);
    } else {
      fill(q, -127, 127);
      std::memcpy(integers.data, q.data, static_cast<size_t>(n * k));
      cpu::pack_weight(integers.data, n, k, reinterpret_cast<int8_t*>(whole.data), sums.data);
      cpu::unpack_weight(reinterpret_cast<int8_t*>(whole.data), n, k,
                         reinterpret_cast<int8_t*>(unpacked.data));
    }
    CHECK(std::memcmp(q.data, unpacked.data, static_cast<size_t>(n * k)) == 0);
    for (int64_t row = 0; row < n; ++row) {
      int32_t expected = 0;
      for (int64_t i = 0; i < k; ++i) expected += integers.data[row * k + i];
      CHECK(sums.data[row] == expected);
    }
    std::copy_n(whole.data, packed.size, packed.data);
    std::copy_n(z.data, zero_point.size, zero_point.data);
    std::copy_n(sums.data, sum.size, sum.data);
  }
  PackedWeight args() const { return {packed.data, four_bits ? zero_point.data : nullptr}; }
  void set(PackedWeight& weight, Epilogue& e) const {
    weight = args();
    e.weight_scale = scale.data;
    e.weight_sum = sum.data;
    e.bias = bias.data;
  }

  int64_t n, k;
  bool four_bits;
  Block<int8_t> integers;  // (n, k)
  Block<uint8_t> packed, zero_point;
  Block<float> scale, bias;
  Block<int32_t> sum;
};

Problem random_gemm() {
  Problem p{};
  p.groups = pick(1, 3);
  p.m = p.groups * pick(1, 40);
  p.n = pick(1, 150);
  p.k = toss() ? 64 * pick(1, 3) : pick(1, 150);
  return p;
}

// Half of them are those whose 3x3 products may go by Winograd's transform.
Problem random_conv() {
  const bool winograd = toss();
  const auto small = [&](int64_t low, int64_t high, int64_t fixed) {
    return winograd ? fixed : pick(low, high);
  };
  Problem p{};
  ConvGeometry& g = p.geometry;
  g.batch = pick(1, 3);
  g.channels = winograd ? 64 * pick(1, 4) : pick(1, 40);
  g.out_channels = winograd ? pick(1, 40) : pick(1, 80);
  g.kernel_h = small(1, 3, 3);
  g.kernel_w = small(1, 3, 3);
  g.stride_h = small(1, 2, 1);
  g.stride_w = small(1, 2, 1);
  g.pad_top = pick(0, 2);
  g.pad_left = pick(0, 2);
  g.upsample = pick(1, 2);
  g.in_h = pick(3, 9);
  g.in_w = pick(3, 9);
  set_outputs(p, 2);
  return p;
}

void run_product(const Problem& p) {
  const ConvGeometry& g = p.geometry;
  const Weight weight(p.n, p.k);
  Block<uint8_t> x(p.conv ? g.batch * g.in_h * g.in_w * g.channels : p.m * p.k);
  Block<float> qparams(3 * p.groups), requant(3 * p.groups);
  const int64_t table_rows = pick(1, 4);
  Block<float> temporal(std::max(table_rows, p.groups) * p.n);
  Block<int64_t> rows(p.groups);
  const Floats residual(p.m * p.n, random_float());
  fill(x, 0, 255);
  fill_qparams(qparams);
  fill_qparams(requant);
  fill_uniform(temporal, 2.0f);
  fill(rows, 0, table_rows - 1);
  Epilogue e{};
  PackedWeight packed{};
  weight.set(packed, e);
  if (toss()) e.bias = nullptr;
  e.input = {qparams.data, 3};
  e.requant = {requant.data, 3};
  e.rows_per_group = e.rows_per_sample = p.m / p.groups;
  e.temporal = toss() ? temporal.data : nullptr;
  e.temporal_stride = p.n;
  e.temporal_table_rows = std::max(table_rows, p.groups);
  e.temporal_rows = toss() ? rows.data : nullptr;
  e.residual = toss() ? residual.words.data : nullptr;
  e.residual_dtype = residual.dtype;
  e.activation = toss() ? Activation::kSilu : Activation::kNone;
  e.out_dtype = toss() ? random_float() : DType::kUInt8;
  const bool second = e.out_dtype != DType::kUInt8 && toss();
  const Outputs out = on_every_level(
      {p.m * p.n * cpu::element_bytes(e.out_dtype), second ? p.m * p.n : 0}, [&](void** to) {
        Epilogue here = e;
        here.out = to[0];
        here.quantized_out = second ? static_cast<uint8_t*>(to[1]) : nullptr;
        if (p.conv) {
          cpu::conv2d_s8({x.data, g, packed, here});
        } else {
          cpu::gemm_s8({x.data, p.m, p.n, p.k, packed, here});
        }
      });
  if (e.activation == Activation::kSilu) return;
  for (int64_t row = 0; row < p.m; ++row) {
    const int64_t group = row / e.rows_per_group;
    const float* q = qparams.data + 3 * group;
    const float* r = requant.data + 3 * group;
    const int64_t temporal_row = e.temporal_rows ? rows.data[group] : group;
    for (int64_t c = 0; c < p.n; ++c) {
      int32_t sum = 0;
      for (int64_t k = 0; k < p.k; ++k)
        sum += centred(p, x.data, static_cast<int32_t>(q[2]), row, k) *
               weight.integers.data[c * p.k + k];
      float offset = e.bias ? e.bias[c] : 0.0f;
      if (e.temporal) offset = offset + e.temporal[temporal_row * p.n + c];
      float y = std::fma(static_cast<float>(sum), q[0] * weight.scale.data[c], offset);
      const int64_t i = row * p.n + c;
      if (e.residual) y = y + residual.at(i);
      if (e.out_dtype == DType::kFloat32) CHECK(value_at<float>(out[0], i) == y);
      if (e.out_dtype == DType::kBFloat16) CHECK(value_at<uint16_t>(out[0], i) == float_to_bf16(y));
      if (e.out_dtype == DType::kUInt8) CHECK(out[0][i] == quantize_value(y, r[1], r[2]));
      if (second) CHECK(out[1][i] == quantize_value(y, r[1], r[2]));
    }
  }
}

void run_group_norm() {
  const int64_t batch = pick(1, 3), pixels = pick(1, 150), groups = pick(1, 4);
  const int64_t channels = groups * pick(1, 12), channels2 = toss() ? groups * pick(1, 9) : 0;
  const int64_t total = channels + channels2, affine_rows = toss() ? batch : 1;
  const DType dtype = random_float();
  const bool any = pick(0, 3) == 0;
  const Floats x(batch * pixels * channels, dtype, any);
  const Floats x2(batch * pixels * channels2, dtype, any);
  Block<float> weight(affine_rows * total), bias(affine_rows * total), qparams(3 * batch);
  fill_uniform(weight, 2.0f);
  fill_uniform(bias, 2.0f);
  fill_qparams(qparams);
  GroupNormArgs args{};
  args.x = x.words.data;
  args.x2 = channels2 ? x2.words.data : nullptr;
  args.x_dtype = dtype;
  args.batch = batch;
  args.pixels = pixels;
  args.channels = channels;
  args.channels2 = channels2;
  args.num_groups = groups;
  args.eps = 1e-5f;
  args.silu = toss();
  args.weight = weight.data;
  args.bias = bias.data;
  args.affine_stride = affine_rows > 1 ? total : 0;
  args.qparams = {qparams.data, toss() ? 3 : 0};
  const bool dynamic = toss();
  on_every_level({batch * pixels * total, dynamic ? 3 * batch * 4 : 0}, [&](void** to) {
    GroupNormArgs here = args;
    here.out = static_cast<uint8_t*>(to[0]);
    here.dynamic_qparams = dynamic ? static_cast<float*>(to[1]) : nullptr;
    cpu::group_norm_silu_quantize(here);
  });
}

void run_rows() {
  const int64_t rows_per_group = pick(1, 3), rows = rows_per_group * pick(1, 20);
  const int64_t channels = pick(1, 150);
  const Floats x(rows * channels, random_float(), pick(0, 3) == 0);
  const Floats halves(rows * 2 * channels, x.dtype);
  Block<float> weight(channels), bias(channels), qparams(3 * (rows / rows_per_group));
  fill_uniform(weight, 2.0f);
  fill_uniform(bias, 2.0f);
  fill_qparams(qparams);
  const QParams given{qparams.data, 3};
  const bool dynamic = toss();
  const float* affine[] = {toss() ? weight.data : nullptr, toss() ? bias.data : nullptr};
  const auto run = [&](int64_t groups, const auto& operation) {
    return on_every_level({rows * channels, dynamic ? 3 * groups * 4 : 0}, [&](void** to) {
      operation(dynamic ? static_cast<float*>(to[1]) : nullptr, static_cast<uint8_t*>(to[0]));
    });
  };
  run(rows, [&](float* found, uint8_t* out) {
    cpu::layer_norm_quantize({x.words.data, x.dtype, rows, channels, 1e-5f, affine[0], affine[1],
                              given, rows_per_group, found, out});
  });
  run(rows, [&](float* found, uint8_t* out) {
    cpu::geglu_quantize(
        {halves.words.data, x.dtype, rows, channels, given, rows_per_group, found, out});
  });
  const int64_t groups = rows / rows_per_group, size = rows_per_group * channels;
  const Outputs out = run(groups, [&](float* found, uint8_t* q) {
    cpu::quantize({x.words.data, x.dtype, groups, size, given, found, q});
  });
  for (int64_t i = 0; i < rows * channels; ++i) {
    const int64_t at = 3 * (i / size);
    const float r = dynamic ? value_at<float>(out[1], at + 1) : qparams.data[at + 1];
    const float z = dynamic ? value_at<float>(out[1], at + 2) : qparams.data[at + 2];
    CHECK(out[0][i] == quantize_value(x.at(i), r, z));
  }
}

void run_gather() {
  const int64_t table_rows = pick(1, 5), width = pick(1, 300), features = pick(1, 9);
  const int64_t count = pick(1, 4);
  Block<uint8_t> table(table_rows * width);
  Block<float> floats(table_rows * width), qparams(table_rows * features * 2);
  Block<int64_t> offsets(features + 1), rows(count);
  fill(table, 0, 255);
  fill_uniform(floats, 1.0f);
  fill_uniform(qparams, 1.0f);
  fill(rows, 0, table_rows - 1);
  fill(offsets, 0, width);
  std::sort(offsets.data, offsets.data + offsets.size);
  offsets.data[0] = 0;
  offsets.data[offsets.size - 1] = width;
  const Outputs out = on_every_level({count * width * 4, count * width * 4}, [&](void** to) {
    cpu::temporal_gather(
        {floats.data, table_rows, width, rows.data, count, static_cast<float*>(to[0])});
    cpu::temporal_gather_dequantize({table.data, table_rows, width, qparams.data, offsets.data,
                                     features, rows.data, count, static_cast<float*>(to[1])});
  });
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t f = 0; f < features; ++f) {
      const float* q = qparams.data + 2 * (rows.data[i] * features + f);
      for (int64_t c = offsets.data[f]; c < offsets.data[f + 1]; ++c) {
        const int64_t from = rows.data[i] * width + c;
        CHECK(value_at<float>(out[0], i * width + c) == floats.data[from]);
        CHECK(value_at<float>(out[1], i * width + c) ==
              (static_cast<float>(table.data[from]) - q[1]) * q[0]);
      }
    }
  }
}

void run_dequantize() {
  const Weight weight(pick(1, 40), pick(1, 160));
  const DType dtype = random_float();
  const int64_t n = weight.n, k = weight.k;
  const Outputs out = on_every_level({n * k * cpu::element_bytes(dtype)}, [&](void** to) {
    cpu::dequantize_weight({weight.args(), n, k, weight.scale.data, to[0], dtype});
  });
  if (dtype != DType::kFloat32) return;
  for (int64_t i = 0; i < n * k; ++i)
    CHECK(value_at<float>(out[0], i) ==
          static_cast<float>(weight.integers.data[i]) * weight.scale.data[i / k]);
}

// Means of values, which are at most 3.
void run_attention() {
  const int64_t batch = pick(1, 2), heads = pick(1, 3), tokens = pick(1, 70);
  const int64_t kv_tokens = pick(1, 150), head_size = pick(1, 90), width = heads * head_size;
  const DType dtype = random_float();
  const Floats query(batch * tokens * width, dtype), key(batch * kv_tokens * width, dtype);
  const Floats value(batch * kv_tokens * width, dtype);
  const Outputs out = on_every_level({batch * tokens * width * 4}, [&](void** to) {
    cpu::attention_s8({query.words.data, key.words.data, value.words.data, dtype, batch, tokens,
                       kv_tokens, heads, head_size, 0.2f, to[0], DType::kFloat32});
  });
  for (int64_t i = 0; i < batch * tokens * width; ++i)
    CHECK(std::fabs(value_at<float>(out[0], i)) <= 3.01f);
}

// The block's operations have cases of their own: here the workspace between them is what is looked at.
void run_resnet() {
  const int64_t batch = pick(1, 3), size = pick(1, 9), pixels = size * size;
  const bool shortcut = toss();
  const int64_t channels = 4 * pick(1, 20), channels2 = shortcut && toss() ? 4 * pick(1, 9) : 0;
  const int64_t n = shortcut ? 4 * pick(1, 20) : channels, total = channels + channels2;
  const Floats x(batch * pixels * channels, random_float());
  const Floats x2(batch * pixels * channels2, x.dtype);
  const Weight first(n, 9 * total), second(n, 9 * n), part(n, channels),
      part2(n, max_of(1, channels2));
  Block<float> affine(max_of(total, n)), temporal(batch * n), qparams(3 * batch);
  fill_uniform(affine, 2.0f);
  fill_uniform(temporal, 2.0f);
  fill_qparams(qparams);
  const auto norm = [&](int64_t width, int64_t width2) {
    GroupNormArgs args{};
    args.x_dtype = x.dtype;
    args.batch = batch;
    args.pixels = pixels;
    args.channels = width;
    args.channels2 = width2;
    args.num_groups = 4;
    args.eps = 1e-5f;
    args.silu = true;
    args.weight = args.bias = affine.data;
    args.qparams = toss() ? QParams{qparams.data, 3} : QParams{nullptr, 0};
    return args;
  };
  const auto conv = [&](const GroupNormArgs& from, const Weight& weight) {
    ConvArgs args{};
    args.geometry = {batch, size, size, from.channels + from.channels2, size, size, n,
                     3,     3,    1,    1,                              1,    1,    1};
    weight.set(args.weight, args.epilogue);
    args.epilogue.input = from.qparams;
    args.epilogue.rows_per_group = args.epilogue.rows_per_sample = pixels;
    args.epilogue.out_dtype = x.dtype;
    return args;
  };
  ResnetBlockArgs args{};
  args.norm1 = norm(channels, channels2);
  args.norm1.x = x.words.data;
  args.norm1.x2 = channels2 ? x2.words.data : nullptr;
  args.conv1 = conv(args.norm1, first);
  args.conv1.epilogue.temporal = toss() ? temporal.data : nullptr;
  args.conv1.epilogue.temporal_stride = n;
  args.norm2 = norm(n, 0);
  args.conv2 = conv(args.norm2, second);
  args.conv2.epilogue.residual_dtype = x.dtype;
  args.shortcuts = shortcut ? 1 + (channels2 > 0) : 0;
  const Weight* parts[] = {&part, &part2};
  for (int64_t i = 0; i < args.shortcuts; ++i) {
    GemmArgs& product = args.shortcut[i];
    product.n = n;
    product.k = parts[i]->k;
    parts[i]->set(product.weight, product.epilogue);
    product.epilogue.rows_per_sample = 1;
  }
  on_every_level({batch * pixels * n * cpu::element_bytes(x.dtype)}, [&](void** to) {
    ResnetBlockArgs here = args;
    here.conv2.epilogue.out = to[0];
    cpu::resnet_block(here);
  });
}

void run_all() {
  omp_set_num_threads(static_cast<int>(pick(1, 3)));
  run_product(random_gemm());
  run_product(random_conv());
  run_group_norm();
  run_rows();
  run_gather();
  run_dequantize();
  run_attention();
  run_resnet();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: fuzz_kernels SECONDS SEED [MISSING]\n"), 2;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  generator.seed(static_cast<uint64_t>(std::atoll(argv[2])));
  if (argc > 3) missing = std::atoll(argv[3]);
  int problems = 0;
  do {
    std::thread(run_all).join();  // a thread's scratch memory ends with it, and is again of exact size
    ++problems;
  } while (tfq::testing::failures == 0 && std::chrono::steady_clock::now() < end);
  std::printf("fuzz_kernels: %d problems, seed %s, levels to %s\n", problems, argv[2],
              cpu::level_name(cpu::detected_level()));
  return tfq::testing::finish("fuzz_kernels");
}

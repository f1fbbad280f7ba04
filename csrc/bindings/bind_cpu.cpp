// CPU operations: one function each, which fills the struct of common/api.h and releases the GIL.
//
// Arguments come in the order of the struct. Quantisation parameters are (address, floats between
// groups), those of images (address, floats between rows, rows).
#include "bindings/args.h"
#include "bindings/bindings.h"
#include "bindings/convert.h"
#include "bindings/program.h"
#include "common/math.h"
#include "cpu/attention_s8/attention_s8.h"
#include "cpu/conv2d_s8/conv2d_s8.h"
#include "cpu/dequantize_weight/dequantize_weight.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/gemm_s8/schedule.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/quantize/quantize.h"
#include "cpu/resnet_block/resnet_block.h"
#include "cpu/temporal_gather/temporal_gather.h"

namespace py = pybind11;

namespace tfq::bindings {
namespace {

// The CPU has no kernels for float16.
DType cpu_dtype(int32_t code) {
  TFQ_CHECK(code >= 0 && code <= 2, "dtype code must be 0, 1 or 2, got ", code);
  return static_cast<DType>(code);
}

// Of an output of `rows` rows. A kernel could not raise for a row outside the temporal table.
Epilogue cpu_epilogue(const char* operation, const py::tuple& t, int64_t rows) {
  const Epilogue e = epilogue_of(t);
  cpu_dtype(static_cast<int32_t>(e.residual_dtype));
  cpu_dtype(static_cast<int32_t>(e.out_dtype));
  TFQ_CHECK(e.activation != Activation::kGeglu, operation, ": the CPU has no kernel for GEGLU");
  if (!e.temporal_rows) return e;
  for (int64_t i = 0; i * e.rows_per_sample < rows; ++i)
    TFQ_CHECK(e.temporal_rows[i] >= 0 && e.temporal_rows[i] < e.temporal_table_rows, operation,
              ": temporal_rows must be in [0, ", e.temporal_table_rows, "), got temporal_rows[", i,
              "] = ", e.temporal_rows[i]);
  return e;
}

void gemm_s8(Address x, int64_t m, int64_t n, int64_t k, Address weight, Address weight_zero_point,
             const py::tuple& epilogue) {
  check_sizes("gemm_s8", {m, n, k});
  check_depth("gemm_s8", k);
  const GemmArgs args{pointer<const uint8_t>(x),
                      m,
                      n,
                      k,
                      {pointer<const void>(weight), pointer<const uint8_t>(weight_zero_point)},
                      cpu_epilogue("gemm_s8", epilogue, m)};
  py::gil_scoped_release release;
  cpu::gemm_s8(args);
}

void conv2d_s8(Address x, const py::tuple& geometry, Address weight, Address weight_zero_point,
               const py::tuple& epilogue) {
  const ConvGeometry g = geometry_of(geometry);
  const ConvArgs args{pointer<const uint8_t>(x),
                      g,
                      {pointer<const void>(weight), pointer<const uint8_t>(weight_zero_point)},
                      cpu_epilogue("conv2d_s8", epilogue, g.batch * g.out_h * g.out_w)};
  py::gil_scoped_release release;
  cpu::conv2d_s8(args);
}

template <typename Args>
void run(void (*operation)(const Args&), const Args& args) {
  cpu_dtype(static_cast<int32_t>(args.x_dtype));
  py::gil_scoped_release release;
  operation(args);
}

void quantize(Address x, int32_t x_dtype, int64_t groups, int64_t group_size,
              const py::tuple& qparams, Address dynamic_qparams, Address out) {
  run(cpu::quantize, quantize_args(x, x_dtype, groups, group_size, qparams, dynamic_qparams, out));
}

void group_norm_silu_quantize(Address x, Address x2, int32_t x_dtype, const py::tuple& shape,
                              float eps, bool silu, Address weight, Address bias,
                              int64_t affine_stride, const py::tuple& qparams,
                              Address dynamic_qparams, Address out) {
  run(cpu::group_norm_silu_quantize, group_norm_args(x, x2, x_dtype, shape, eps, silu, weight, bias,
                                                     affine_stride, qparams, dynamic_qparams, out));
}

void layer_norm_quantize(Address x, int32_t x_dtype, int64_t rows, int64_t channels, float eps,
                         Address weight, Address bias, const py::tuple& qparams,
                         int64_t rows_per_group, Address dynamic_qparams, Address out) {
  run(cpu::layer_norm_quantize, layer_norm_args(x, x_dtype, rows, channels, eps, weight, bias,
                                                qparams, rows_per_group, dynamic_qparams, out));
}

void geglu_quantize(Address x, int32_t x_dtype, int64_t rows, int64_t channels,
                    const py::tuple& qparams, int64_t rows_per_group, Address dynamic_qparams,
                    Address out) {
  run(cpu::geglu_quantize,
      geglu_args(x, x_dtype, rows, channels, qparams, rows_per_group, dynamic_qparams, out));
}

void attention_s8(Address query, Address key, Address value, int32_t dtype, const py::tuple& shape,
                  float scale, Address out, int32_t out_dtype) {
  cpu_dtype(dtype);
  cpu_dtype(out_dtype);
  const AttentionArgs args =
      attention_args(query, key, value, dtype, shape, scale, out, out_dtype);
  py::gil_scoped_release release;
  cpu::attention_s8(args);
}

// (weight, bias, affine_stride, num_groups, eps, qparams)
GroupNormArgs resnet_norm(const py::tuple& t, DType dtype, int64_t batch, int64_t pixels,
                          int64_t channels, int64_t channels2) {
  GroupNormArgs norm{};
  norm.x_dtype = dtype;
  norm.batch = batch;
  norm.pixels = pixels;
  norm.channels = channels;
  norm.channels2 = channels2;
  norm.weight = pointer<const float>(t[0].cast<Address>());
  norm.bias = pointer<const float>(t[1].cast<Address>());
  norm.affine_stride = t[2].cast<int64_t>();
  norm.num_groups = t[3].cast<int64_t>();
  norm.eps = t[4].cast<float>();
  norm.qparams = image_rows_of("resnet_block", t[5], batch);
  norm.silu = true;
  TFQ_CHECK(norm.num_groups > 0 && (channels + channels2) % norm.num_groups == 0,
            "resnet_block: ", channels + channels2, " channels do not divide into ",
            norm.num_groups, " groups");
  return norm;
}

// (weight, zero_point, scale, sum, bias)
void set_weight(const py::tuple& t, PackedWeight& weight, Epilogue& epilogue) {
  weight = {pointer<const void>(t[0].cast<Address>()),
            pointer<const uint8_t>(t[1].cast<Address>())};
  epilogue.weight_scale = pointer<const float>(t[2].cast<Address>());
  epilogue.weight_sum = pointer<const int32_t>(t[3].cast<Address>());
  epilogue.bias = pointer<const float>(t[4].cast<Address>());
}

// A 3x3 convolution that keeps the size, of the norm's output.
ConvArgs resnet_conv(const GroupNormArgs& norm, const py::tuple& weight, int64_t height,
                     int64_t width, int64_t out_channels) {
  ConvArgs conv{};
  const int64_t channels = norm.channels + norm.channels2;
  conv.geometry = {norm.batch, height, width, channels, height, width, out_channels,
                   3,          3,      1,     1,        1,      1,     1};
  check_depth("resnet_block", 9 * channels);
  set_weight(weight, conv.weight, conv.epilogue);
  conv.epilogue.input = norm.qparams;
  conv.epilogue.rows_per_group = conv.epilogue.rows_per_sample = max_of(1, norm.pixels);
  conv.epilogue.out_dtype = norm.x_dtype;
  return conv;
}

void resnet_block(Address x, Address x2, int32_t dtype, const py::tuple& shape,
                  const py::tuple& norm1, const py::tuple& conv1, const py::tuple& temporal,
                  const py::tuple& norm2, const py::tuple& conv2, const py::tuple& shortcuts,
                  Address out) {
  TFQ_CHECK(shape.size() == 6, "resnet_block: shape must have 6 entries, got ", shape.size());
  int64_t v[6];  // batch, height, width, channels, channels2, out_channels
  for (size_t i = 0; i < 6; ++i) v[i] = shape[i].cast<int64_t>();
  check_sizes("resnet_block", {v[0], v[1], v[2], v[3], v[4], v[5]});
  TFQ_CHECK(shortcuts.size() <= 2, "resnet_block: at most 2 shortcuts, got ", shortcuts.size());
  const DType type = cpu_dtype(static_cast<int32_t>(float_of("resnet_block", dtype)));
  ResnetBlockArgs args{};
  args.norm1 = resnet_norm(norm1, type, v[0], v[1] * v[2], v[3], v[4]);
  args.norm1.x = pointer<const void>(x);
  args.norm1.x2 = pointer<const void>(x2);
  args.conv1 = resnet_conv(args.norm1, conv1, v[1], v[2], v[5]);
  const QParams temporal_rows = image_rows_of("resnet_block", temporal, v[0]);
  args.conv1.epilogue.temporal = temporal_rows.data;
  args.conv1.epilogue.temporal_stride = temporal_rows.stride;
  args.norm2 = resnet_norm(norm2, type, v[0], v[1] * v[2], v[5], 0);
  args.conv2 = resnet_conv(args.norm2, conv2, v[1], v[2], v[5]);
  args.conv2.epilogue.residual_dtype = type;
  args.conv2.epilogue.out = pointer<void>(out);
  args.shortcuts = static_cast<int64_t>(shortcuts.size());
  for (size_t i = 0; i < shortcuts.size(); ++i) {
    GemmArgs& product = args.shortcut[i];
    product.n = v[5];
    product.k = v[3 + i];
    set_weight(shortcuts[i].cast<py::tuple>(), product.weight, product.epilogue);
    product.epilogue.rows_per_sample = 1;
  }
  py::gil_scoped_release release;
  cpu::resnet_block(args);
}

void temporal_gather(Address table, int64_t table_rows, int64_t width, Address rows, int64_t count,
                     Address out) {
  const TemporalGatherArgs args = gather_args(table, table_rows, width, rows, count, out);
  py::gil_scoped_release release;
  cpu::temporal_gather(args);
}

void temporal_gather_dequantize(Address table, int64_t table_rows, int64_t width, Address qparams,
                                Address offsets, int64_t features, Address rows, int64_t count,
                                Address out) {
  const TemporalDequantizeArgs args = gather_dequantize_args(table, table_rows, width, qparams,
                                                             offsets, features, rows, count, out);
  py::gil_scoped_release release;
  cpu::temporal_gather_dequantize(args);
}

void pack_weight(Address weight, int64_t n, int64_t k, Address packed, Address weight_sum) {
  check_sizes("pack_weight", {n, k});
  check_not_null("pack_weight", {weight, packed, weight_sum});
  py::gil_scoped_release release;
  cpu::pack_weight(pointer<const int8_t>(weight), n, k, pointer<int8_t>(packed),
                   pointer<int32_t>(weight_sum));
}

void unpack_weight(Address packed, int64_t n, int64_t k, Address weight) {
  check_sizes("unpack_weight", {n, k});
  check_not_null("unpack_weight", {packed, weight});
  py::gil_scoped_release release;
  cpu::unpack_weight(pointer<const int8_t>(packed), n, k, pointer<int8_t>(weight));
}

void pack_weight_s4(Address q, Address zero_point, int64_t n, int64_t k, Address packed,
                    Address weight_sum) {
  check_sizes("pack_weight_s4", {n, k});
  check_not_null("pack_weight_s4", {q, zero_point, packed, weight_sum});
  py::gil_scoped_release release;
  cpu::pack_weight_s4(pointer<const uint8_t>(q), pointer<const uint8_t>(zero_point), n, k,
                      pointer<uint8_t>(packed), pointer<int32_t>(weight_sum));
}

void unpack_weight_s4(Address packed, int64_t n, int64_t k, Address q) {
  check_sizes("unpack_weight_s4", {n, k});
  check_not_null("unpack_weight_s4", {packed, q});
  py::gil_scoped_release release;
  cpu::unpack_weight_s4(pointer<const uint8_t>(packed), n, k, pointer<uint8_t>(q));
}

void dequantize_weight(Address weight, Address zero_point, int64_t n, int64_t k, Address scale,
                       Address out, int32_t out_dtype) {
  cpu_dtype(out_dtype);
  const DequantizeWeightArgs args =
      dequantize_weight_args(weight, zero_point, n, k, scale, out, out_dtype);
  py::gil_scoped_release release;
  cpu::dequantize_weight(args);
}

// (rows, columns) of a task of a dense product with int8 weights; `block`: (rows, columns).
std::pair<int64_t, int64_t> gemm_schedule(int64_t m, int64_t n, int64_t k,
                                          std::pair<int64_t, int64_t> block, int64_t threads,
                                          int64_t l2_bytes) {
  const cpu::GemmSchedule schedule =
      cpu::schedule_gemm(m, n, cpu::packed_k(k), cpu::packed_k(k), cpu::kRowsPerRead,
                         {block.first, block.second, threads, l2_bytes});
  return {schedule.task_rows, schedule.task_columns};
}

}  // namespace

void bind_cpu(py::module_& module) {
  py::class_<Program> program(module, "Program");
  program.def(py::init<>()).def("run", &Program::run).def("__len__", &Program::size);
  const auto define = [&](const char* name, auto* operation) {
    define_operation(module, program, name, operation);
  };
  define("gemm_s8", gemm_s8);
  define("conv2d_s8", conv2d_s8);
  define("quantize", quantize);
  define("group_norm_silu_quantize", group_norm_silu_quantize);
  define("layer_norm_quantize", layer_norm_quantize);
  define("geglu_quantize", geglu_quantize);
  define("attention_s8", attention_s8);
  define("resnet_block", resnet_block);
  define("temporal_gather", temporal_gather);
  define("temporal_gather_dequantize", temporal_gather_dequantize);
  define("dequantize_weight", dequantize_weight);
  module.def("cpu_gemm_schedule", gemm_schedule);
  module.def("pack_weight", pack_weight);
  module.def("unpack_weight", unpack_weight);
  module.def("pack_weight_s4", pack_weight_s4);
  module.def("unpack_weight_s4", unpack_weight_s4);
}

}  // namespace tfq::bindings

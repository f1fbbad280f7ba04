// CPU operations: one function each, which fills the struct of common/api.h and releases the GIL.
//
// Arguments come in the order of the struct. Quantisation parameters are (address, floats between
// groups).
#include "bindings/args.h"
#include "bindings/bindings.h"
#include "bindings/convert.h"
#include "cpu/conv2d_s8/conv2d_s8.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/quantize/quantize.h"
#include "cpu/temporal_gather/temporal_gather.h"

namespace py = pybind11;

namespace tfq::bindings {
namespace {

// The CPU has no kernels for float16.
DType cpu_dtype(int32_t code) {
  TFQ_CHECK(code >= 0 && code <= 2, "dtype code must be 0, 1 or 2, got ", code);
  return static_cast<DType>(code);
}

Epilogue cpu_epilogue(const py::tuple& t) {
  const Epilogue e = epilogue_of(t);
  cpu_dtype(static_cast<int32_t>(e.residual_dtype));
  cpu_dtype(static_cast<int32_t>(e.out_dtype));
  return e;
}

void gemm_s8(Address x, int64_t m, int64_t n, int64_t k, Address weight,
             const py::tuple& epilogue) {
  check_sizes("gemm_s8", {m, n, k});
  check_depth("gemm_s8", k);
  const GemmArgs args{pointer<const uint8_t>(x), m, n, k, pointer<const int8_t>(weight),
                      cpu_epilogue(epilogue)};
  py::gil_scoped_release release;
  cpu::gemm_s8(args);
}

void conv2d_s8(Address x, const py::tuple& geometry, Address weight, const py::tuple& epilogue) {
  const ConvArgs args{
      pointer<const uint8_t>(x),
      geometry_of(geometry),
      pointer<const int8_t>(weight),
      cpu_epilogue(epilogue)};
  py::gil_scoped_release release;
  cpu::conv2d_s8(args);
}

void quantize(Address x, int32_t x_dtype, int64_t groups, int64_t group_size,
              const py::tuple& qparams, Address dynamic_qparams, Address out) {
  check_sizes("quantize", {groups, group_size});
  const QuantizeArgs args{pointer<const void>(x),
                          cpu_dtype(x_dtype),
                          groups,
                          group_size,
                          qparams_of(qparams),
                          pointer<float>(dynamic_qparams),
                          pointer<uint8_t>(out)};
  py::gil_scoped_release release;
  cpu::quantize(args);
}

void group_norm_silu_quantize(Address x, Address x2, int32_t x_dtype, const py::tuple& shape,
                              float eps, bool silu, Address weight, Address bias,
                              int64_t affine_stride, const py::tuple& qparams,
                              Address dynamic_qparams, Address out) {
  TFQ_CHECK(shape.size() == 5, "group_norm_silu_quantize: shape must have 5 entries, got ",
            shape.size());
  int64_t v[5];
  for (size_t i = 0; i < 5; ++i) v[i] = shape[i].cast<int64_t>();
  check_sizes("group_norm_silu_quantize", {v[0], v[1], v[2], v[3]});
  TFQ_CHECK(v[4] > 0 && (v[2] + v[3]) % v[4] == 0, "group_norm_silu_quantize: ", v[2] + v[3],
            " channels do not divide into ", v[4], " groups");
  const GroupNormArgs args{pointer<const void>(x),
                           pointer<const void>(x2),
                           cpu_dtype(x_dtype),
                           v[0],
                           v[1],
                           v[2],
                           v[3],
                           v[4],
                           eps,
                           silu,
                           pointer<const float>(weight),
                           pointer<const float>(bias),
                           affine_stride,
                           qparams_of(qparams),
                           pointer<float>(dynamic_qparams),
                           pointer<uint8_t>(out)};
  py::gil_scoped_release release;
  cpu::group_norm_silu_quantize(args);
}

void layer_norm_quantize(Address x, int32_t x_dtype, int64_t rows, int64_t channels, float eps,
                         Address weight, Address bias, const py::tuple& qparams,
                         int64_t rows_per_group, Address dynamic_qparams, Address out) {
  check_sizes("layer_norm_quantize", {rows, channels});
  const LayerNormArgs args{pointer<const void>(x),
                           cpu_dtype(x_dtype),
                           rows,
                           channels,
                           eps,
                           pointer<const float>(weight),
                           pointer<const float>(bias),
                           qparams_of(qparams),
                           rows_per_group,
                           pointer<float>(dynamic_qparams),
                           pointer<uint8_t>(out)};
  py::gil_scoped_release release;
  cpu::layer_norm_quantize(args);
}

void geglu_quantize(Address x, int32_t x_dtype, int64_t rows, int64_t channels,
                    const py::tuple& qparams, int64_t rows_per_group, Address dynamic_qparams,
                    Address out) {
  check_sizes("geglu_quantize", {rows, channels});
  const GegluArgs args{pointer<const void>(x),
                       cpu_dtype(x_dtype),
                       rows,
                       channels,
                       qparams_of(qparams),
                       rows_per_group,
                       pointer<float>(dynamic_qparams),
                       pointer<uint8_t>(out)};
  py::gil_scoped_release release;
  cpu::geglu_quantize(args);
}

void temporal_gather(Address table, int64_t table_rows, int64_t width, Address rows, int64_t count,
                     Address out) {
  check_sizes("temporal_gather", {table_rows, width, count});
  const TemporalGatherArgs args{pointer<const float>(table),  table_rows, width,
                                pointer<const int64_t>(rows), count,      pointer<float>(out)};
  py::gil_scoped_release release;
  cpu::temporal_gather(args);
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

}  // namespace

void bind_cpu(py::module_& module) {
  module.def("gemm_s8", gemm_s8);
  module.def("conv2d_s8", conv2d_s8);
  module.def("quantize", quantize);
  module.def("group_norm_silu_quantize", group_norm_silu_quantize);
  module.def("layer_norm_quantize", layer_norm_quantize);
  module.def("geglu_quantize", geglu_quantize);
  module.def("temporal_gather", temporal_gather);
  module.def("pack_weight", pack_weight);
  module.def("unpack_weight", unpack_weight);
}

}  // namespace tfq::bindings

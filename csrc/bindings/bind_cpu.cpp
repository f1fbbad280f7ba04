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

template <typename Args>
void run(void (*operation)(const Args&), const Args& args) {
  cpu_dtype(static_cast<int32_t>(args.x_dtype));
  py::gil_scoped_release release;
  operation(args);
}

void quantize(Address x, int32_t x_dtype, int64_t groups, int64_t group_size,
              const py::tuple& qparams, Address dynamic_qparams, Address out) {
  run(cpu::quantize,
      quantize_args(x, x_dtype, groups, group_size, qparams, dynamic_qparams, out));
}

void group_norm_silu_quantize(Address x, Address x2, int32_t x_dtype, const py::tuple& shape,
                              float eps, bool silu, Address weight, Address bias,
                              int64_t affine_stride, const py::tuple& qparams,
                              Address dynamic_qparams, Address out) {
  run(cpu::group_norm_silu_quantize,
      group_norm_args(x, x2, x_dtype, shape, eps, silu, weight, bias, affine_stride, qparams,
                      dynamic_qparams, out));
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
  run(cpu::geglu_quantize, geglu_args(x, x_dtype, rows, channels, qparams, rows_per_group,
                                      dynamic_qparams, out));
}

void temporal_gather(Address table, int64_t table_rows, int64_t width, Address rows, int64_t count,
                     Address out) {
  const TemporalGatherArgs args = gather_args(table, table_rows, width, rows, count, out);
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

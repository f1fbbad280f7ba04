// CUDA operations: bind_cpu.cpp's functions with two more arguments, the options of products and
// the launch. They exist in every build; without CUDA, csrc/cuda/stubs.cpp answers.
#include <pybind11/stl.h>

#include "bindings/args.h"
#include "bindings/bindings.h"
#include "bindings/convert.h"
#include "cuda/attention_args.h"
#include "cuda/conv_config.h"
#include "cuda/cuda.h"

namespace py = pybind11;

namespace tfq::bindings {
namespace {

// (device, stream)
cuda::Launch launch_of(const py::tuple& t) {
  TFQ_CHECK(t.size() == 2, "launch must have 2 entries, got ", t.size());
  return {t[0].cast<int>(), pointer<void>(t[1].cast<Address>())};
}

// (workspace, workspace_size, tile, splits, tap_sums, enlarged)
cuda::ProductOptions options_of(const py::tuple& t) {
  TFQ_CHECK(t.size() == 6, "options must have 6 entries, got ", t.size());
  return {pointer<int32_t>(t[0].cast<Address>()), t[1].cast<int64_t>(), t[2].cast<int>(),
          t[3].cast<int>(), pointer<const int32_t>(t[4].cast<Address>()),
          pointer<uint8_t>(t[5].cast<Address>())};
}

void gemm_s8(Address x, int64_t m, int64_t n, int64_t k, Address weight, const py::tuple& epilogue,
             const py::tuple& options, const py::tuple& launch) {
  check_sizes("gemm_s8", {m, n, k});
  check_depth("gemm_s8", k);
  const GemmArgs args{pointer<const uint8_t>(x), m, n, k, {pointer<const void>(weight), nullptr},
                      epilogue_of(epilogue)};
  cuda::gemm_s8(args, options_of(options), launch_of(launch));
}

void conv2d_s8(Address x, Address x2, int64_t channels2, const py::tuple& geometry, Address weight,
               const py::tuple& epilogue, const py::tuple& options, const py::tuple& launch) {
  check_sizes("conv2d_s8", {channels2});
  const ConvArgs args{pointer<const uint8_t>(x),
                      geometry_of(geometry),
                      {pointer<const void>(weight), nullptr},
                      epilogue_of(epilogue)};
  check_depth("conv2d_s8", args.geometry.kernel_h * args.geometry.kernel_w *
                               (args.geometry.channels + channels2));
  cuda::conv2d_s8(args, pointer<const uint8_t>(x2), channels2, options_of(options),
                  launch_of(launch));
}

int64_t enlarged_bytes(const py::tuple& geometry, int64_t channels2, int device) {
  return cuda::enlarged_bytes(geometry_of(geometry), channels2, device);
}

void quantize(Address x, int32_t x_dtype, int64_t groups, int64_t group_size,
              const py::tuple& qparams, Address dynamic_qparams, Address out, Address workspace,
              const py::tuple& launch) {
  cuda::quantize(quantize_args(x, x_dtype, groups, group_size, qparams, dynamic_qparams, out),
                 pointer<float>(workspace), launch_of(launch));
}

void group_norm_silu_quantize(Address x, Address x2, int32_t x_dtype, const py::tuple& shape,
                              float eps, bool silu, Address weight, Address bias,
                              int64_t affine_stride, const py::tuple& qparams,
                              Address dynamic_qparams, Address out, Address workspace,
                              const py::tuple& launch) {
  cuda::group_norm_silu_quantize(group_norm_args(x, x2, x_dtype, shape, eps, silu, weight, bias,
                                                 affine_stride, qparams, dynamic_qparams, out),
                                 pointer<float>(workspace), launch_of(launch));
}

void layer_norm_quantize(Address x, int32_t x_dtype, int64_t rows, int64_t channels, float eps,
                         Address weight, Address bias, const py::tuple& qparams,
                         int64_t rows_per_group, Address dynamic_qparams, Address out,
                         const py::tuple& launch) {
  cuda::layer_norm_quantize(layer_norm_args(x, x_dtype, rows, channels, eps, weight, bias, qparams,
                                            rows_per_group, dynamic_qparams, out),
                            launch_of(launch));
}

void geglu_quantize(Address x, int32_t x_dtype, int64_t rows, int64_t channels,
                    const py::tuple& qparams, int64_t rows_per_group, Address dynamic_qparams,
                    Address out, const py::tuple& launch) {
  cuda::geglu_quantize(
      geglu_args(x, x_dtype, rows, channels, qparams, rows_per_group, dynamic_qparams, out),
      launch_of(launch));
}

void dequantize_weight(Address weight, Address zero_point, int64_t n, int64_t k, Address scale,
                       Address out, int32_t out_dtype, const py::tuple& launch) {
  cuda::dequantize_weight(dequantize_weight_args(weight, zero_point, n, k, scale, out, out_dtype),
                          launch_of(launch));
}

void attention_s8(Address query, Address key, Address value, int32_t dtype, const py::tuple& shape,
                  float scale, Address out, int32_t out_dtype, Address workspace,
                  const py::tuple& launch) {
  cuda::attention_s8(attention_args(query, key, value, dtype, shape, scale, out, out_dtype),
                     pointer<void>(workspace), launch_of(launch));
}

int64_t attention_workspace(const py::tuple& shape) {
  return cuda::AttentionSizes(attention_args(0, 0, 0, 0, shape, 1.0f, 0, 0)).bytes();
}

void temporal_gather(Address table, int64_t table_rows, int64_t width, Address rows, int64_t count,
                     Address out, const py::tuple& launch) {
  cuda::temporal_gather(gather_args(table, table_rows, width, rows, count, out), launch_of(launch));
}

void temporal_gather_dequantize(Address table, int64_t table_rows, int64_t width, Address qparams,
                                Address offsets, int64_t features, Address rows, int64_t count,
                                Address out, const py::tuple& launch) {
  cuda::temporal_gather_dequantize(gather_dequantize_args(table, table_rows, width, qparams,
                                                          offsets, features, rows, count, out),
                                   launch_of(launch));
}

int tile_named(const std::string& name) {
  for (int tile = 0; tile < cuda::kTileCount; ++tile)
    if (name == cuda::kTiles[tile].name) return tile;
  throw std::invalid_argument("dispatch table: no tile '" + name + "'; cuda_tiles() lists them");
}

// Entries (arch, multiprocessors, operation, m, n, k, tile name, splits, microseconds).
cuda::DispatchTable table_of(const py::list& entries) {
  cuda::DispatchTable table;
  for (const py::handle& entry : entries) {
    const py::tuple e = entry.cast<py::tuple>();
    TFQ_CHECK(e.size() == 9, "dispatch table: an entry must have 9 values, got ", e.size());
    const cuda::MeasuredTile best{tile_named(e[6].cast<std::string>()), e[7].cast<int>(),
                                  e[8].cast<double>()};
    TFQ_CHECK(best.splits > 0 && best.microseconds > 0,
              "dispatch table: splits and microseconds must be positive, got ", best.splits,
              " and ", best.microseconds);
    table[{e[0].cast<int>(), e[1].cast<int>(), e[2].cast<std::string>(), e[3].cast<int64_t>(),
           e[4].cast<int64_t>(), e[5].cast<int64_t>()}] = best;
  }
  return table;
}

void set_dispatch_table(const py::list& entries) { cuda::dispatch_table() = table_of(entries); }

// The choice for a product, from facts about a device that need not be there and the entries of a
// dispatch table: (tile name, splits, one line a candidate).
py::tuple choose_product(const std::string& operation, int64_t m, int64_t n, int64_t k,
                         int64_t workspace, const py::tuple& device, const py::list& entries) {
  TFQ_CHECK(device.size() == 5, "device must have 5 entries, got ", device.size());
  const cuda::DeviceFacts facts{device[0].cast<int>(), device[1].cast<int>(), device[2].cast<int>(),
                                device[3].cast<int>(), device[4].cast<bool>()};
  const cuda::ProductChoice choice =
      cuda::choose_product(operation.c_str(), {m, n, k, workspace}, facts, table_of(entries));
  return py::make_tuple(cuda::kTiles[choice.tile].name, choice.splits, cuda::describe(choice));
}

// The (m, n, k) of a convolution.
py::tuple conv_problem(const py::tuple& geometry, int64_t channels2) {
  const cuda::ProductProblem problem =
      cuda::conv_problem(geometry_of(geometry), channels2, 0, false);
  return py::make_tuple(problem.m, problem.n, problem.k);
}

std::vector<std::string> tiles() {
  std::vector<std::string> names;
  for (const cuda::Tile& tile : cuda::kTiles) names.emplace_back(tile.name);
  return names;
}

// pybind11's register_exception would export symbols that carry our names.
PyObject* cuda_error = nullptr;

void translate_cuda_error(std::exception_ptr exception) {
  try {
    if (exception) std::rethrow_exception(exception);
  } catch (const cuda::CudaError& error) {
    PyErr_SetString(cuda_error, error.what());
  }
}

}  // namespace

void bind_cuda(py::module_& module) {
  if (!cuda_error) {
    cuda_error = PyErr_NewException("tfq._C.CudaError", PyExc_RuntimeError, nullptr);
    py::register_exception_translator(translate_cuda_error);
  }
  module.attr("CudaError") = py::handle(cuda_error);
  module.def("cuda_available", [] { return !cuda::built_archs().empty(); });
  module.def("cuda_gemm_s8", gemm_s8);
  module.def("cuda_conv2d_s8", conv2d_s8);
  module.def("cuda_enlarged_bytes", enlarged_bytes);
  module.def("cuda_quantize", quantize);
  module.def("cuda_group_norm_silu_quantize", group_norm_silu_quantize);
  module.def("cuda_layer_norm_quantize", layer_norm_quantize);
  module.def("cuda_geglu_quantize", geglu_quantize);
  module.def("cuda_dequantize_weight", dequantize_weight);
  module.def("cuda_attention_s8", attention_s8);
  module.def("cuda_temporal_gather", temporal_gather);
  module.def("cuda_temporal_gather_dequantize", temporal_gather_dequantize);
  module.def("cuda_image_workspace", cuda::image_workspace);
  module.def("cuda_attention_workspace", attention_workspace);
  module.def("cuda_has_attention",
             [](int64_t head_size) { return cuda::head_kernel(head_size) >= 0; });
  module.def("cuda_tiles", tiles);
  module.def("cuda_set_dispatch_table", set_dispatch_table);
  module.def("cuda_set_overlapping_launches", cuda::set_overlapping_launches);
  module.def("cuda_choose_product", choose_product);
  module.def("cuda_conv_problem", conv_problem);
}

}  // namespace tfq::bindings

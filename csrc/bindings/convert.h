// The structs of common/api.h from the tuples tfq.ops passes.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/args.h"

namespace tfq::bindings {

inline QParams qparams_of(pybind11::handle value) {
  const auto pair = value.cast<pybind11::tuple>();
  return {pointer<const float>(pair[0].cast<Address>()), pair[1].cast<int64_t>()};
}

// (address, floats between rows, rows) of a table with a row for each image, or one row for all.
inline QParams image_rows_of(const char* operation, pybind11::handle value, int64_t batch) {
  const auto table = value.cast<pybind11::tuple>();
  const QParams rows{pointer<const float>(table[0].cast<Address>()), table[1].cast<int64_t>()};
  const auto count = table[2].cast<int64_t>();
  TFQ_CHECK(!rows.data || count == batch || (count == 1 && rows.stride == 0), operation,
            ": a table for ", batch, " images must have as many rows or 1, got ", count);
  return rows;
}

inline DType dtype_of(int32_t code) {
  TFQ_CHECK(code >= 0 && code <= 3, "dtype code must be 0, 1, 2 or 3, got ", code);
  return static_cast<DType>(code);
}

// What the kernels read as numbers, or write as such.
inline DType float_of(const char* operation, int32_t code) {
  const DType dtype = dtype_of(code);
  TFQ_CHECK(dtype != DType::kUInt8, operation, ": dtype code must be that of a float, got ", code);
  return dtype;
}

// (qparams, rows_per_group, weight_scale, weight_sum, bias, temporal, temporal_stride,
// temporal_table_rows, temporal_rows, rows_per_sample, residual, residual_dtype, activation, out,
// out_dtype, quantized_out, requant)
inline Epilogue epilogue_of(const pybind11::tuple& t) {
  TFQ_CHECK(t.size() == 17, "epilogue must have 17 entries, got ", t.size());
  const auto activation = t[12].cast<int32_t>();
  TFQ_CHECK(activation >= 0 && activation <= 2, "activation must be 0, 1 or 2, got ", activation);
  const Epilogue e{qparams_of(t[0]),
                   t[1].cast<int64_t>(),
                   pointer<const float>(t[2].cast<Address>()),
                   pointer<const int32_t>(t[3].cast<Address>()),
                   pointer<const float>(t[4].cast<Address>()),
                   pointer<const float>(t[5].cast<Address>()),
                   t[6].cast<int64_t>(),
                   t[7].cast<int64_t>(),
                   pointer<const int64_t>(t[8].cast<Address>()),
                   t[9].cast<int64_t>(),
                   pointer<const void>(t[10].cast<Address>()),
                   float_of("epilogue", t[11].cast<int32_t>()),
                   static_cast<Activation>(activation),
                   pointer<void>(t[13].cast<Address>()),
                   dtype_of(t[14].cast<int32_t>()),
                   pointer<uint8_t>(t[15].cast<Address>()),
                   qparams_of(t[16])};
  TFQ_CHECK(e.rows_per_group > 0 && e.rows_per_sample > 0,
            "epilogue: rows_per_group and rows_per_sample must be positive, got ", e.rows_per_group,
            " and ", e.rows_per_sample);
  return e;
}

// (batch, in_h, in_w, channels, out_h, out_w, out_channels, kernel_h, kernel_w, stride_h, stride_w,
// pad_top, pad_left, upsample)
inline ConvGeometry geometry_of(const pybind11::tuple& t) {
  TFQ_CHECK(t.size() == 14, "conv2d_s8: geometry must have 14 entries, got ", t.size());
  int64_t v[14];
  for (size_t i = 0; i < 14; ++i) v[i] = t[i].cast<int64_t>();
  check_sizes("conv2d_s8", {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]});
  TFQ_CHECK(v[9] > 0 && v[10] > 0, "conv2d_s8: stride must be positive, got ", v[9], ", ", v[10]);
  TFQ_CHECK(v[13] == 1 || v[13] == 2, "conv2d_s8: upsample must be 1 or 2, got ", v[13]);
  check_depth("conv2d_s8", v[3] * v[7] * v[8]);
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13]};
}

inline QuantizeArgs quantize_args(Address x, int32_t x_dtype, int64_t groups, int64_t group_size,
                                  const pybind11::tuple& qparams, Address dynamic_qparams,
                                  Address out) {
  check_sizes("quantize", {groups, group_size});
  return {pointer<const void>(x),
          float_of("quantize", x_dtype),
          groups,
          group_size,
          qparams_of(qparams),
          pointer<float>(dynamic_qparams),
          pointer<uint8_t>(out)};
}

// shape: (batch, pixels, channels, channels2, num_groups)
inline GroupNormArgs group_norm_args(Address x, Address x2, int32_t x_dtype,
                                     const pybind11::tuple& shape, float eps, bool silu,
                                     Address weight, Address bias, int64_t affine_stride,
                                     const pybind11::tuple& qparams, Address dynamic_qparams,
                                     Address out) {
  TFQ_CHECK(shape.size() == 5, "group_norm_silu_quantize: shape must have 5 entries, got ",
            shape.size());
  int64_t v[5];
  for (size_t i = 0; i < 5; ++i) v[i] = shape[i].cast<int64_t>();
  check_sizes("group_norm_silu_quantize", {v[0], v[1], v[2], v[3]});
  TFQ_CHECK(v[4] > 0 && (v[2] + v[3]) % v[4] == 0, "group_norm_silu_quantize: ", v[2] + v[3],
            " channels do not divide into ", v[4], " groups");
  return {pointer<const void>(x),
          pointer<const void>(x2),
          float_of("group_norm_silu_quantize", x_dtype),
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
          image_rows_of("group_norm_silu_quantize", qparams, v[0]),
          pointer<float>(dynamic_qparams),
          pointer<uint8_t>(out)};
}

inline LayerNormArgs layer_norm_args(Address x, int32_t x_dtype, int64_t rows, int64_t channels,
                                     float eps, Address weight, Address bias,
                                     const pybind11::tuple& qparams, int64_t rows_per_group,
                                     Address dynamic_qparams, Address out) {
  check_sizes("layer_norm_quantize", {rows, channels});
  return {pointer<const void>(x),
          float_of("layer_norm_quantize", x_dtype),
          rows,
          channels,
          eps,
          pointer<const float>(weight),
          pointer<const float>(bias),
          qparams_of(qparams),
          rows_per_group,
          pointer<float>(dynamic_qparams),
          pointer<uint8_t>(out)};
}

inline GegluArgs geglu_args(Address x, int32_t x_dtype, int64_t rows, int64_t channels,
                            const pybind11::tuple& qparams, int64_t rows_per_group,
                            Address dynamic_qparams, Address out) {
  check_sizes("geglu_quantize", {rows, channels});
  return {pointer<const void>(x),
          float_of("geglu_quantize", x_dtype),
          rows,
          channels,
          qparams_of(qparams),
          rows_per_group,
          pointer<float>(dynamic_qparams),
          pointer<uint8_t>(out)};
}

inline DequantizeWeightArgs dequantize_weight_args(Address weight, Address zero_point, int64_t n,
                                                   int64_t k, Address scale, Address out,
                                                   int32_t out_dtype) {
  check_sizes("dequantize_weight", {n, k});
  return {{pointer<const void>(weight), pointer<const uint8_t>(zero_point)},
          n,
          k,
          pointer<const float>(scale),
          pointer<void>(out),
          float_of("dequantize_weight", out_dtype)};
}

// shape: (batch, tokens, kv_tokens, heads, head_size)
inline AttentionArgs attention_args(Address query, Address key, Address value, int32_t dtype,
                                    const pybind11::tuple& shape, float scale, Address out,
                                    int32_t out_dtype) {
  TFQ_CHECK(shape.size() == 5, "attention_s8: shape must have 5 entries, got ", shape.size());
  int64_t v[5];
  for (size_t i = 0; i < 5; ++i) v[i] = shape[i].cast<int64_t>();
  check_sizes("attention_s8", {v[0], v[1], v[2], v[3], v[4]});
  check_depth("attention_s8", v[2], "kv_tokens");
  check_depth("attention_s8", v[4], "head_size");
  return {pointer<const void>(query),
          pointer<const void>(key),
          pointer<const void>(value),
          float_of("attention_s8", dtype),
          v[0],
          v[1],
          v[2],
          v[3],
          v[4],
          scale,
          pointer<void>(out),
          float_of("attention_s8", out_dtype)};
}

inline TemporalGatherArgs gather_args(Address table, int64_t table_rows, int64_t width,
                                      Address rows, int64_t count, Address out) {
  check_sizes("temporal_gather", {table_rows, width, count});
  return {pointer<const float>(table),  table_rows, width,
          pointer<const int64_t>(rows), count,      pointer<float>(out)};
}

inline TemporalDequantizeArgs gather_dequantize_args(Address table, int64_t table_rows,
                                                     int64_t width, Address qparams,
                                                     Address offsets, int64_t features,
                                                     Address rows, int64_t count, Address out) {
  check_sizes("temporal_gather", {table_rows, width, features, count});
  check_not_null("temporal_gather", {offsets});
  return {pointer<const uint8_t>(table),
          table_rows,
          width,
          pointer<const float>(qparams),
          pointer<const int64_t>(offsets),
          features,
          pointer<const int64_t>(rows),
          count,
          pointer<float>(out)};
}

}  // namespace tfq::bindings

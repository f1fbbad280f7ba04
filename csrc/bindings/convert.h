// The structs of common/api.h from the tuples tfq.ops passes.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/args.h"

namespace tfq::bindings {

inline QParams qparams_of(pybind11::handle value) {
  const auto pair = value.cast<pybind11::tuple>();
  return {pointer<const float>(pair[0].cast<Address>()), pair[1].cast<int64_t>()};
}

inline DType dtype_of(int32_t code) {
  TFQ_CHECK(code >= 0 && code <= 3, "dtype code must be 0, 1, 2 or 3, got ", code);
  return static_cast<DType>(code);
}

// (qparams, rows_per_group, weight_scale, weight_sum, bias, temporal, temporal_stride,
// rows_per_sample, residual, residual_dtype, out, out_dtype, requant)
inline Epilogue epilogue_of(const pybind11::tuple& t) {
  TFQ_CHECK(t.size() == 13, "epilogue must have 13 entries, got ", t.size());
  Epilogue e{};
  e.input = qparams_of(t[0]);
  e.rows_per_group = t[1].cast<int64_t>();
  e.weight_scale = pointer<const float>(t[2].cast<Address>());
  e.weight_sum = pointer<const int32_t>(t[3].cast<Address>());
  e.bias = pointer<const float>(t[4].cast<Address>());
  e.temporal = pointer<const float>(t[5].cast<Address>());
  e.temporal_stride = t[6].cast<int64_t>();
  e.rows_per_sample = t[7].cast<int64_t>();
  e.residual = pointer<const void>(t[8].cast<Address>());
  e.residual_dtype = dtype_of(t[9].cast<int32_t>());
  e.out = pointer<void>(t[10].cast<Address>());
  e.out_dtype = dtype_of(t[11].cast<int32_t>());
  e.requant = qparams_of(t[12]);
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

}  // namespace tfq::bindings

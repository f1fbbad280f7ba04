// Weight packing: see packed_layout.h.
#include <cstring>

#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/gemm_s8/packed_layout.h"

namespace tfq::cpu {

void pack_weight(const int8_t* weight, int64_t n, int64_t k, int8_t* packed, int32_t* weight_sum) {
  std::memset(packed, 0, static_cast<size_t>(packed_bytes(n, k)));
  for (int64_t column = 0; column < n; ++column) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int8_t value = weight[column * k + i];
      packed[packed_offset(column, i, k)] = value;
      sum += value;
    }
    weight_sum[column] = sum;
  }
}

void unpack_weight(const int8_t* packed, int64_t n, int64_t k, int8_t* weight) {
  for (int64_t column = 0; column < n; ++column)
    for (int64_t i = 0; i < k; ++i) weight[column * k + i] = packed[packed_offset(column, i, k)];
}

}  // namespace tfq::cpu

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

void pack_weight_s4(const uint8_t* q, const uint8_t* zero_point, int64_t n, int64_t k,
                    uint8_t* packed, int32_t* weight_sum) {
  std::memset(packed, 0, static_cast<size_t>(packed_panels(n) * packed_panel_bytes_s4(k)));
  for (int64_t column = 0; column < n; ++column) {
    int32_t sum = 0;
    for (int64_t i = 0; i < packed_k(k); ++i) {
      const int value = i < k ? q[column * k + i] : zero_point[column];
      const NibblePosition position = nibble_position(packed_offset(column, i, k));
      packed[position.byte] = static_cast<uint8_t>(packed[position.byte] | value << position.shift);
      sum += value - zero_point[column];
    }
    weight_sum[column] = sum;
  }
}

void unpack_weight_s4(const uint8_t* packed, int64_t n, int64_t k, uint8_t* q) {
  for (int64_t column = 0; column < n; ++column)
    for (int64_t i = 0; i < k; ++i) {
      const NibblePosition position = nibble_position(packed_offset(column, i, k));
      q[column * k + i] = packed[position.byte] >> position.shift & 15;
    }
}

}  // namespace tfq::cpu

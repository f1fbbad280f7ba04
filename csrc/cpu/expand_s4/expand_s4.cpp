#include "cpu/expand_s4/expand_s4.h"

#include <cstring>

#include "cpu/gemm_s8/packed_layout.h"

namespace tfq::cpu {

PanelZeroPoints panel_zero_points(const PackedWeight& weight, int64_t n, int64_t panel) {
  PanelZeroPoints zero_points{};
  const int64_t column = panel * kPanelColumns;
  std::memcpy(zero_points.values, weight.zero_point + column,
              static_cast<size_t>(min_of(kPanelColumns, n - column)));
  return zero_points;
}

void expand_panels(const expand_s4_kernel& kernel, const PackedWeight& weight, int64_t n, int64_t k,
                   int64_t panel, int64_t panels, int8_t* out) {
  const auto* packed = static_cast<const uint8_t*>(weight.data);
  for (int64_t i = panel; i < panel + panels; ++i, out += packed_panel_bytes(k)) {
    const PanelZeroPoints zero_points = panel_zero_points(weight, n, i);
    kernel.expand(packed + i * packed_panel_bytes_s4(k), zero_points.values, packed_k(k) / kQuad,
                  out);
  }
}

}  // namespace tfq::cpu

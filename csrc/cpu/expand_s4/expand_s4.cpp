#include "cpu/expand_s4/expand_s4.h"

#include <cstring>

#include "common/parallel.h"
#include "cpu/gemm_s8/packed_layout.h"

namespace tfq::cpu {

PanelZeroPoints panel_zero_points(const PackedWeight& weight, int64_t n, int64_t panel) {
  PanelZeroPoints zero_points{};
  const int64_t column = panel * kPanelColumns;
  std::memcpy(zero_points.values, weight.zero_point + column,
              static_cast<size_t>(min_of(kPanelColumns, n - column)));
  return zero_points;
}

const int8_t* int8_panels(const expand_s4_kernel& kernel, const PackedWeight& weight, int64_t n,
                          int64_t k, int64_t panel, int64_t panels, int slot) {
  if (weight.zero_point == nullptr)
    return static_cast<const int8_t*>(weight.data) + panel * packed_panel_bytes(k);
  auto* expanded = static_cast<int8_t*>(
      thread_scratch(slot, static_cast<size_t>(panels * packed_panel_bytes(k))));
  const auto* packed = static_cast<const uint8_t*>(weight.data);
  for (int64_t i = 0; i < panels; ++i) {
    const PanelZeroPoints zero_points = panel_zero_points(weight, n, panel + i);
    kernel.expand(packed + (panel + i) * packed_panel_bytes_s4(k), zero_points.values,
                  packed_k(k) / kQuad, expanded + i * packed_panel_bytes(k));
  }
  return expanded;
}

}  // namespace tfq::cpu

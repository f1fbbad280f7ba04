#include "cpu/dequantize_weight/dequantize_weight.h"

#include "common/math.h"
#include "common/parallel.h"
#include "cpu/element_type.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kTaskBlocks = 32;  // 32,768 values, some 10 us of work

struct Job {
  const DequantizeWeightArgs& args;
  const dequantize_weight_kernel& kernel;
  const expand_s4_kernel& expand;

  // The int8 values of block `block` of panel `panel`: in place, or expanded into `expanded`.
  const int8_t* values(int64_t panel, int64_t block, int8_t* expanded) const {
    const PackedWeight& weight = args.weight;
    const int64_t offset = panel * packed_panel_bytes(args.k) + block * kBlockBytes;
    if (weight.zero_point == nullptr) return static_cast<const int8_t*>(weight.data) + offset;
    const PanelZeroPoints zero_points = panel_zero_points(weight, args.n, panel);
    expand.expand(static_cast<const uint8_t*>(weight.data) + offset / 2, zero_points.values,
                  kBlockK / kQuad, expanded);
    return expanded;
  }

  void run(int64_t panel, int64_t block) const {
    alignas(64) int8_t expanded[kBlockBytes];
    const int64_t column = panel * kPanelColumns, first = block * kBlockK;
    const int64_t size = element_bytes(args.out_dtype);
    kernel.block(values(panel, block, expanded), min_of(kPanelColumns, args.n - column),
                 min_of(kBlockK, args.k - first), args.scale + column, args.out_dtype,
                 static_cast<char*>(args.out) + (column * args.k + first) * size, args.k);
  }
};

}  // namespace

void dequantize_weight(const DequantizeWeightArgs& args) {
  const Level level = active_level();
  const Job job{args, select_dequantize_weight(level), select_expand_s4(level)};
  const int64_t panel_blocks = packed_k(args.k) / kBlockK;
  const int64_t blocks = packed_panels(args.n) * panel_blocks;
  parallel_for(ceil_div(blocks, kTaskBlocks), [&](int64_t task) {
    const int64_t end = min_of(blocks, (task + 1) * kTaskBlocks);
    for (int64_t block = task * kTaskBlocks; block < end; ++block)
      job.run(block / panel_blocks, block % panel_blocks);
  });
}

}  // namespace tfq::cpu

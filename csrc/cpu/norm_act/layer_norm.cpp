#include "common/check.h"
#include "cpu/element_type.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/norm_act/row_quantize.h"
#include "cpu/registry.h"

namespace tfq::cpu {

void layer_norm_quantize(const LayerNormArgs& args) {
  TFQ_CHECK(args.channels > 0, "layer_norm_quantize: channels must be positive, got ",
            args.channels);
  TFQ_CHECK(args.dynamic_qparams || args.rows_per_group > 0,
            "layer_norm_quantize: rows_per_group must be positive, got ", args.rows_per_group);
  struct Job {
    const LayerNormArgs& args;
    const layer_norm_kernel& kernel;
  };
  const Job job{args, select_layer_norm(active_level())};
  quantize_rows(args.rows, args.channels,
                {args.qparams, args.rows_per_group, args.dynamic_qparams, args.out},
                [&job](int64_t row, int64_t count, float* y) {
                  const LayerNormArgs& a = job.args;
                  job.kernel.normalize(element_at(a.x, a.x_dtype, row * a.channels), a.x_dtype,
                                       count, a.channels, a.eps, a.weight, a.bias, y);
                });
}

}  // namespace tfq::cpu

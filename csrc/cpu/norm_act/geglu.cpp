#include "common/check.h"
#include "cpu/element_type.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/norm_act/row_quantize.h"
#include "cpu/registry.h"

namespace tfq::cpu {

void geglu_quantize(const GegluArgs& args) {
  TFQ_CHECK(args.dynamic_qparams || args.rows_per_group > 0,
            "geglu_quantize: rows_per_group must be positive, got ", args.rows_per_group);
  struct Job {
    const GegluArgs& args;
    const geglu_kernel& kernel;
  };
  const Job job{args, select_geglu(active_level())};
  quantize_rows(args.rows, args.channels,
                {args.qparams, args.rows_per_group, args.dynamic_qparams, args.out},
                [&job](int64_t row, int64_t count, float* y) {
                  const GegluArgs& a = job.args;
                  for (int64_t i = 0; i < count; ++i)
                    job.kernel.activate(element_at(a.x, a.x_dtype, (row + i) * 2 * a.channels),
                                        a.x_dtype, a.channels, y + i * a.channels);
                });
}

}  // namespace tfq::cpu

// The native module tfq._C. Calls are positional-only and take addresses: only tfq/ops/ may make
// them, and tfq/cpu_capture.py repeats those that it recorded.
#include "bindings/bindings.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of tfq; use tfq.ops.";
  module.attr("__version__") = TFQ_VERSION;
  tfq::bindings::bind_info(module);
  tfq::bindings::bind_cpu(module);
  tfq::bindings::bind_cuda(module);
}

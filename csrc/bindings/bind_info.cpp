// Build facts, instruction-set level and kernel table.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "common/parallel.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/registry.h"
#include "cuda/cuda.h"

namespace py = pybind11;

namespace tfq::bindings {

void bind_info(py::module_& module) {
  module.attr("packed_layout_version") = cpu::kPackedLayoutVersion;
  module.def("compiler", [] { return std::string(TFQ_COMPILER); });
  module.def("cuda_archs", [] { return cuda::built_archs(); });
  module.def("num_threads", [] { return num_threads(); });
  module.def("isa", [] { return std::string(cpu::level_name(cpu::active_level())); });
  module.def("detected_isa", [] { return std::string(cpu::level_name(cpu::detected_level())); });
  module.def(
      "set_max_isa",
      [](const std::string& name) { cpu::set_max_level(cpu::level_from_name(name)); }, py::arg(),
      py::pos_only());
  module.def("kernels", [] {
    std::vector<std::tuple<std::string, std::string, std::string>> kernels;
    for (const cpu::KernelInfo& kernel : cpu::kernel_table())
      kernels.emplace_back(kernel.family, kernel.name, cpu::level_name(kernel.level));
    return kernels;
  });
}

}  // namespace tfq::bindings

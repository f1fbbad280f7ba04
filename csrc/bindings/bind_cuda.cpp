// CUDA operations. The functions exist in every build; without CUDA, csrc/cuda/stubs.cpp answers.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "cuda/cuda.h"

namespace py = pybind11;

namespace tfq::bindings {

void bind_cuda(py::module_& module) {
  module.def("cuda_available", [] { return !cuda::built_archs().empty(); });
}

}  // namespace tfq::bindings

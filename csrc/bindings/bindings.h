// What each bind_*.cpp adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace tfq::bindings {

void bind_info(pybind11::module_& module);
void bind_cpu(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);

}  // namespace tfq::bindings

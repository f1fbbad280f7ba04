// tfq_simt: csrc/bindings/bind_cuda.cpp over the host build of the CUDA kernels, for tests. The
// functions take addresses of CPU tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "cuda/simt.h"
#include "device_host.h"
#include "overlap_host.h"

namespace py = pybind11;

PYBIND11_MODULE(tfq_simt, module) {
  namespace simt = tfq::simt;
  tfq::bindings::bind_cuda(module);
  module.attr("fault_count") = static_cast<int>(simt::kFaultCount);
  module.def("set_options", [](int order, bool lazy_copies, uint64_t seed, int fault) {
    simt::options() = {static_cast<simt::Order>(order), lazy_copies, seed, fault};
  });
  module.def("set_device", [](int arch, int multiprocessors, int shared_per_block,
                              int shared_per_multiprocessor, bool wgmma) {
    tfq::cuda::simulated_device() = {arch, multiprocessors, shared_per_block,
                                     shared_per_multiprocessor, wgmma};
  });
  module.def("set_unfinished_memory", [](const std::vector<std::pair<uintptr_t, size_t>>& pieces) {
    std::vector<std::pair<unsigned char*, size_t>> memory;
    for (const auto& [address, bytes] : pieces)
      memory.emplace_back(reinterpret_cast<unsigned char*>(address), bytes);
    simt::set_unfinished_memory(std::move(memory));
  });
  module.def("reset_counters", [] { simt::counters() = {}; });
  module.def("counters", [] {
    const simt::Counters& c = simt::counters();
    return py::dict(py::arg("launches") = c.launches, py::arg("blocks") = c.blocks,
                    py::arg("product_turns") = c.product_turns,
                    py::arg("ldmatrix_phases") = c.ldmatrix_phases,
                    py::arg("ldmatrix_conflicts") = c.ldmatrix_conflicts,
                    py::arg("last_kernel") = c.last_kernel);
  });
}

// The CUDA half as the rest of the extension sees it; free of CUDA headers.
#pragma once

#include <string>
#include <vector>

namespace tfq::cuda {

// Architectures this build has kernels for, e.g. {"80", "90a"}; empty in a CPU-only build.
std::vector<std::string> built_archs();

}  // namespace tfq::cuda

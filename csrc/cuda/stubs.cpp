// A build without CUDA kernels.
#include "cuda/cuda.h"

namespace tfq::cuda {

std::vector<std::string> built_archs() { return {}; }

}  // namespace tfq::cuda

// A build without CUDA kernels.
#include "cuda/cuda.h"

namespace tfq::cuda {
namespace {

[[noreturn]] void without_cuda(const char* operation) {
  throw CudaError(std::string(operation) +
                  ": this build of tfq has no CUDA kernels; build it where nvcc is, with TFQ_CUDA=ON");
}

}  // namespace

std::vector<std::string> built_archs() { return {}; }

void gemm_s8(const GemmArgs&, const ProductOptions&, const Launch&) { without_cuda("gemm_s8"); }

void conv2d_s8(const ConvArgs&, const uint8_t*, int64_t, const ProductOptions&, const Launch&) {
  without_cuda("conv2d_s8");
}

}  // namespace tfq::cuda

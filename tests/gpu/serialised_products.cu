// What ptxas serialises: sums that are read between two products of a batch. tests/test_cuda_build.py sees that it
// is refused; never run.
#include "cuda/ptx_sm90.cuh"

namespace tfq::cuda {

TFQ_KERNEL TFQ_LAUNCH_BOUNDS(128, 1) serialised_products(int32_t* out) {
  if constexpr (ptx::kHasWgmma) {
    const uint64_t operand = ptx::matrix_descriptor(0, Swizzle::k128);
    ptx::Sums<128> sums;
    ptx::fence_products();
    ptx::multiply_add_u8s8(sums, operand, operand, false);
    out[0] = sums[0][0];
    ptx::multiply_add_u8s8(sums, operand, operand, true);
    ptx::commit_products();
    ptx::wait_products<0>();
    out[1] = sums[0][0];
  }
}

// Kernels exist where they are used.
using Kernel = void (*)(int32_t*);
extern const Kernel kernel;
const Kernel kernel = serialised_products;

}  // namespace tfq::cuda

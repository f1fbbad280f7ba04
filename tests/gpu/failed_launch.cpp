// What a refused launch says: printed without a card, which only the launch itself would need.
#include <cstdio>

#include "cuda/device.h"

int main() {
  constexpr int kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration
  try {
    tfq::cuda::check_launch(kInvalidConfiguration, {"a_kernel", {3, 1, 2}, 128, 49152, nullptr});
  } catch (const tfq::cuda::CudaError& error) {
    std::puts(error.what());
  }
  return 0;
}

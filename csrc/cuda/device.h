// Facts about a device, and errors of launches; free of CUDA headers.
#pragma once

#include <stdexcept>

#include "cuda/launch_config.h"

namespace tfq::cuda {

// What the choice of a kernel depends on.
struct DeviceFacts {
  int arch;  // 10 * major + minor of the compute capability
  int multiprocessors;
  int shared_per_block;  // bytes, after opting in
  int shared_per_multiprocessor;
  bool wgmma;  // Hopper, and this build has code for sm_90a
};

// CUDA refused something; Python's tfq.CudaError (a RuntimeError).
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Cached for each device. Throws CudaError.
DeviceFacts device_facts(int device);

// Makes `device` current until the end of the scope. Throws CudaError.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

// Throws CudaError with the kernel, its configuration and CUDA's text unless `status` (a
// cudaError_t) is success.
void check_launch(int status, const simt::LaunchConfig& config);

// Where the environment has TFQ_DEBUG_SYNC=1 (read once), waits for the kernel that was queued last,
// unless its stream is being captured. Throws CudaError with the kernel if that or one before it
// failed: else whoever waits next would be blamed.
void debug_synchronize(const simt::LaunchConfig& config);

}  // namespace tfq::cuda

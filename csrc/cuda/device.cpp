#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "cuda/cuda.h"

namespace tfq::cuda {
namespace {

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw CudaError(message("CUDA: ", call, " failed: ", cudaGetErrorName(status), ": ",
                            cudaGetErrorString(status)));
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

[[noreturn]] void fail(cudaError_t error, const simt::LaunchConfig& config, const char* what) {
  cudaGetLastError();  // clears it, so that the next launch is not blamed
  throw CudaError(message(config.kernel, ": ", what, " failed: ", cudaGetErrorName(error), ": ",
                          cudaGetErrorString(error), " (grid ", config.grid.x, " x ", config.grid.y,
                          " x ", config.grid.z, ", ", config.threads, " threads, ",
                          config.shared_bytes, " bytes of shared memory, clusters of ",
                          config.cluster, ")"));
}

}  // namespace

DeviceFacts device_facts(int device) {
  static std::mutex mutex;
  static std::vector<DeviceFacts> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto index = static_cast<size_t>(device);
  if (index >= known.size()) known.resize(index + 1);
  DeviceFacts& facts = known[index];
  if (facts.arch == 0) {
    facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    facts.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    facts.shared_per_multiprocessor =
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    facts.arch = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                 attribute(cudaDevAttrComputeCapabilityMinor, device);
    const std::vector<std::string> built = built_archs();
    facts.wgmma = facts.arch == 90 && std::any_of(built.begin(), built.end(), [](const auto& arch) {
                    return arch.rfind("90a", 0) == 0;  // also "90a-real"
                  });
  }
  return facts;
}

DeviceGuard::DeviceGuard(int device) : previous_(-1) {
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

void check_launch(int status, const simt::LaunchConfig& config) {
  if (status != cudaSuccess) fail(static_cast<cudaError_t>(status), config, "launch");
}

void debug_synchronize(const simt::LaunchConfig& config) {
  static const bool enabled = [] {
    const char* value = std::getenv("TFQ_DEBUG_SYNC");
    return value != nullptr && std::string_view(value) == "1";
  }();
  if (!enabled) return;
  const auto stream = static_cast<cudaStream_t>(config.stream);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t status = cudaStreamIsCapturing(stream, &capture);
  if (status == cudaSuccess && capture == cudaStreamCaptureStatusNone)
    status = cudaStreamSynchronize(stream);
  if (status != cudaSuccess) fail(status, config, "run");
}

std::vector<std::string> built_archs() {
  std::vector<std::string> archs;
  std::istringstream list(TFQ_CUDA_ARCHS);
  for (std::string arch; std::getline(list, arch, ',');) archs.push_back(arch);
  return archs;
}

}  // namespace tfq::cuda

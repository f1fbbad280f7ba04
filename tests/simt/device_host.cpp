// csrc/cuda/device.cpp of the host build: the device is whatever a test says.
#include "device_host.h"

#include "cuda/cuda.h"

namespace tfq::cuda {

DeviceFacts& simulated_device() {
  static DeviceFacts facts{80, 108, 166912, 167936, false};
  return facts;
}

DeviceFacts device_facts(int) { return simulated_device(); }

DeviceGuard::DeviceGuard(int) : previous_(-1) {}
DeviceGuard::~DeviceGuard() = default;

std::vector<std::string> built_archs() { return {"simt"}; }

}  // namespace tfq::cuda

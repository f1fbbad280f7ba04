// The device the host build pretends to have.
#pragma once

#include "cuda/device.h"

namespace tfq::cuda {

DeviceFacts& simulated_device();

}  // namespace tfq::cuda

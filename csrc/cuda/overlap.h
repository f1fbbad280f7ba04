// Launches that may begin before what is before them on the stream has ended (programmatic dependent
// launch). Their kernels wait for it first, which needs instructions of sm_90.
#pragma once

#include "cuda/device.h"

namespace tfq::cuda {

// Whether launches on this device overlap: they may if this build has its code for Hopper, and unless
// set_overlapping_launches says otherwise.
bool launches_overlap(const DeviceFacts& device);

}  // namespace tfq::cuda

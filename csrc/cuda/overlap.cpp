#include "cuda/overlap.h"

#include "cuda/cuda.h"

namespace tfq::cuda {
namespace {

bool overlapping_launches = true;

}  // namespace

void set_overlapping_launches(bool enabled) { overlapping_launches = enabled; }

bool launches_overlap(const DeviceFacts& device) { return overlapping_launches && device.wgmma; }

}  // namespace tfq::cuda

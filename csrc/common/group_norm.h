// The partial sums of a GroupNorm, of which the CPU's kernels and CUDA's have the same.
#pragma once

namespace tfq {

// Pixels per float32 partial sum: fixed, so that the result does not depend on how the pixels are
// spread over threads.
constexpr int kChunkPixels = 64;

}  // namespace tfq

// What the launchers of the bandwidth kernels share; free of CUDA headers.
#pragma once

#include "common/check.h"
#include "cuda/cuda.h"
#include "cuda/launch_config.h"
#include "cuda/overlap.h"

namespace tfq::cuda {

constexpr int64_t kMaxGridY = 65535;  // blocks along a grid's second dimension

inline int32_t narrow(const char* operation, int64_t size) {
  TFQ_CHECK(size >= 0 && size < (int64_t{1} << 31), operation,
            ": CUDA kernels need sizes below 2^31, got ", size);
  return static_cast<int32_t>(size);
}

// Runs of 8 values are read and written as vectors.
inline void check_run(const char* operation, const char* what, int64_t size) {
  TFQ_CHECK(size > 0 && size % 8 == 0, operation, ": CUDA kernels need ", what,
            " to be a positive multiple of 8, got ", size);
}

inline void check_address(const char* operation, const char* name, const void* address) {
  TFQ_CHECK(reinterpret_cast<uintptr_t>(address) % 16 == 0, operation, ": ", name,
            " must begin at a multiple of 16 bytes, got address ", address);
}

// A launch of a kernel that is ptx::begin_kernel's.
inline simt::LaunchConfig bandwidth_config(const char* kernel, simt::Dim3 grid, uint32_t threads,
                                           uint32_t shared_bytes, const Launch& launch) {
  return {kernel, grid, threads, shared_bytes, launch.stream, 1,
          launches_overlap(device_facts(launch.device))};
}

// Whether groups of this size are quantised by quantize_rows().
bool quantize_as_rows(int64_t group_size);
void quantize_rows(const QuantizeArgs& args, const Launch& launch);

}  // namespace tfq::cuda

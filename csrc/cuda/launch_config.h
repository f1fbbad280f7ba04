// The configuration of a launch; free of CUDA headers.
#pragma once

#include <cstdint>

namespace tfq::simt {

constexpr int kWarpSize = 32;

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  const char* kernel;  // name, for errors
  Dim3 grid;
  uint32_t threads;       // of a block, a multiple of kWarpSize
  uint32_t shared_bytes;  // dynamic
  void* stream;           // cudaStream_t
  uint32_t cluster = 1;   // blocks along x that run together; grid.x is a multiple of it
  bool overlaps = false;  // may begin before what is before it on the stream has ended
};

}  // namespace tfq::simt

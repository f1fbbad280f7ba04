// What the programs that compare a card with its emulation share: memory both sides read, and the
// end of a launch. Built with nvcc for the card, with the C++ compiler for the emulation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace {

void* allocate(size_t bytes) {
#ifdef TFQ_SIMT_HOST
  return std::aligned_alloc(16, bytes);
#else
  void* memory = nullptr;
  if (cudaMallocManaged(&memory, bytes) != cudaSuccess) std::abort();
  return memory;
#endif
}

// The same bytes in memory of the card alone, as the copy engine is used to; the emulation's is the host's.
[[maybe_unused]] uint8_t* on_card(uint8_t* source, size_t bytes) {
#ifdef TFQ_SIMT_HOST
  (void)bytes;
  return source;
#else
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes) != cudaSuccess ||
      cudaMemcpy(memory, source, bytes, cudaMemcpyDefault) != cudaSuccess)
    std::abort();
  return static_cast<uint8_t*>(memory);
#endif
}

void finish() {
#ifndef TFQ_SIMT_HOST
  if (cudaDeviceSynchronize() != cudaSuccess) std::abort();
#endif
}

}  // namespace

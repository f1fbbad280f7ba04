// What the programs that compare a card with its emulation share: memory both sides read, and the
// end of a launch. Built with nvcc for the card, with the C++ compiler for the emulation.
#pragma once

#include <cstddef>
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

void finish() {
#ifndef TFQ_SIMT_HOST
  if (cudaDeviceSynchronize() != cudaSuccess) std::abort();
#endif
}

}  // namespace

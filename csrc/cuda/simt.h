// What a kernel may use of the execution model, so that the same source compiles twice: with nvcc,
// and with a C++ compiler where the threads are fibres (TFQ_SIMT_HOST; tests/simt/simt_host.h).
//
// Rules for kernels: every thread reaches every barrier (bounds are predicates on loads and stores,
// never early returns); no lock step is assumed; shared memory is one dynamic block, addressed by
// byte offsets from 0; instructions come from ptx.cuh.
#pragma once

#include <cstdint>

#include "cuda/launch_config.h"

#ifdef TFQ_SIMT_HOST

#include "simt_host.h"
#define TFQ_KERNEL static void
#define TFQ_LAUNCH_BOUNDS(threads, blocks)
#define TFQ_DEVICE inline
#define TFQ_GRID_CONSTANT

#else

#include <cuda_runtime.h>

#include "cuda/device.h"
#define TFQ_KERNEL static __global__ void
#define TFQ_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define TFQ_DEVICE __device__ __forceinline__
#define TFQ_GRID_CONSTANT __grid_constant__

namespace tfq::simt {

TFQ_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
TFQ_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
TFQ_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }
TFQ_DEVICE int block_size() { return static_cast<int>(blockDim.x); }
TFQ_DEVICE Dim3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
TFQ_DEVICE Dim3 grid_size() { return {gridDim.x, gridDim.y, gridDim.z}; }
TFQ_DEVICE void sync_block() { __syncthreads(); }
TFQ_DEVICE void sync_warp() { __syncwarp(); }

// The byte at `offset` of the block's dynamic shared memory.
template <typename T>
TFQ_DEVICE T* shared_at(uint32_t offset) {
  extern __shared__ __align__(1024) unsigned char tfq_shared_memory[];
  return reinterpret_cast<T*>(tfq_shared_memory + offset);
}

// Deliberate faults exist in the host build only.
TFQ_DEVICE constexpr bool fault(int) { return false; }

// Queues the kernel (TFQ_DEBUG_SYNC=1: and waits); throws CudaError with the kernel, its configuration
// and CUDA's text.
template <typename Args>
void launch(void (*kernel)(Args), const LaunchConfig& config, const Args& args) {
  constexpr uint32_t kDefaultSharedBytes = 48 * 1024;
  const void* symbol = reinterpret_cast<const void*>(kernel);
  if (config.shared_bytes > kDefaultSharedBytes) {
    cuda::check_launch(cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(config.shared_bytes)),
                       config);
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned int count = 0;
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {config.cluster, 1, 1};
  }
  if (config.overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t native{};
  native.gridDim = dim3(config.grid.x, config.grid.y, config.grid.z);
  native.blockDim = dim3(config.threads);
  native.dynamicSmemBytes = config.shared_bytes;
  native.stream = static_cast<cudaStream_t>(config.stream);
  native.attrs = attributes;
  native.numAttrs = count;
  void* parameters[] = {const_cast<Args*>(&args)};
  cuda::check_launch(cudaLaunchKernelExC(&native, symbol, parameters), config);
  cuda::debug_synchronize(config);
}

}  // namespace tfq::simt

#endif

namespace tfq::simt {

// Faults a test can switch on in the host build, to prove that it would be seen.
enum Fault : int {
  kNoFault,
  kFaultNoBarrierAfterWait,
  kFaultWaitOneGroupTooFew,
  kFaultRefillBeforeBarrier,
  kFaultReturnBeforeBarrier,
  kFaultStoreBeyondRows,
  kFaultLoadBeyondRows,
  kFaultNoSwizzle,
  kFaultPaddingIsZero,
  kFaultSplitWithoutReset,
  kFaultSplitLastBlockTooEarly,
  kFaultReduceWithoutBarrier,
  kFaultReduceOverwritten,
  kFaultRowUnchecked,
  kFaultWaitOneProductTooFew,
  kFaultReleaseBeforeProducts,
  kFaultNoWaitForFull,
  kFaultNoWaitForEmpty,
  kFaultExpectTooFewBytes,
  kFaultWrongSwizzle,
  kFaultStoreBeyondDepth,
  kFaultMulticastToItself,
  kFaultNoRemoteRelease,
  kFaultNoFirstClusterSync,
  kFaultEndBeforeReleases,
  kFaultNoTurn,
  kFaultNoSkip,
  kFaultSharedScratch,
  kFaultCopyBeforeLaunches,
  kFaultFinishBeforeLaunches,
  kFaultTokensInOrder,
  kFaultPaddingHasWeight,
  kFaultLargestOfOwnTokens,
  kFaultBeginBeforeLaunches,
  kFaultTransposedTap,
  kFaultNoLastUnit,
  kFaultNoEpilogueBarrier,
  kFaultSharedEpilogueBarrier,
  kFaultUnpublishedBarriers,
  kFaultCount
};

}  // namespace tfq::simt

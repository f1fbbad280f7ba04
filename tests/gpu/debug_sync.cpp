// What TFQ_DEBUG_SYNC=1 does after a launch, told by a runtime that the arguments make up:
// debug_sync <is being captured> <status of the stream>. No card and no CUDA library takes part.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/device.h"

namespace {

cudaStreamCaptureStatus captured = cudaStreamCaptureStatusNone;
cudaError_t stream_status = cudaSuccess;
int waits = 0;

}  // namespace

extern "C" {

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = captured;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++waits;
  return stream_status;
}
cudaError_t cudaGetLastError() { return stream_status; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorName"; }
const char* cudaGetErrorString(cudaError_t) { return "its text"; }
cudaError_t cudaGetDevice(int*) { return cudaErrorNoDevice; }
cudaError_t cudaSetDevice(int) { return cudaErrorNoDevice; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaErrorNoDevice; }

}  // extern "C"

int main(int, char** arguments) {
  if (std::atoi(arguments[1]) != 0) captured = cudaStreamCaptureStatusActive;
  stream_status = static_cast<cudaError_t>(std::atoi(arguments[2]));
  try {
    tfq::cuda::debug_synchronize({"a_kernel", {3, 1, 2}, 128, 49152, nullptr});
  } catch (const tfq::cuda::CudaError& error) {
    std::puts(error.what());
  }
  std::printf("%d waits\n", waits);
  return 0;
}

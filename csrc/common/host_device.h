// TFQ_HOST_DEVICE: functions that CUDA kernels share with the CPU.
#pragma once

#ifdef __CUDACC__
#define TFQ_HOST_DEVICE __host__ __device__
#else
#define TFQ_HOST_DEVICE
#endif

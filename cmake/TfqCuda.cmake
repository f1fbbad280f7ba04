# Decides whether this build has CUDA kernels and sets TFQ_CUDA_SOURCES.
set(TFQ_CUDA_SOURCES csrc/cuda/stubs.cpp)
if(TFQ_CUDA STREQUAL "ON")
  message(FATAL_ERROR "TFQ_CUDA=ON: this version of tfq has no CUDA kernels yet; use AUTO or OFF")
endif()
message(STATUS "tfq CUDA: off (this version has no CUDA kernels yet)")

# Decides whether this build has CUDA kernels. Sets TFQ_CUDA_SOURCES, those of tfq_core, and defines
# tfq_link_cuda(target).
include(CheckLanguage)

# Machine code and PTX for the first card that can run the kernels, which all later ones compile for
# themselves, and machine code for Hopper, whose own kernels are in 90a alone. A release names every
# architecture.
set(TFQ_CUDA_ARCHS "80;90a-real" CACHE STRING "CUDA architectures, as in CMAKE_CUDA_ARCHITECTURES")

# What only thinks about a device is in every build.
set(TFQ_CUDA_SOURCES
  csrc/cuda/conv_config.cpp
  csrc/cuda/gemm_config.cpp)
set(_tfq_cuda_kernels
  csrc/cuda/attention_operands.cu
  csrc/cuda/attention_s8_sm80.cu
  csrc/cuda/conv2d_s8_sm80.cu
  csrc/cuda/conv2d_s8_sm90.cu
  csrc/cuda/dequantize_weight.cu
  csrc/cuda/gemm_s8_sm80.cu
  csrc/cuda/gemm_s8_sm90.cu
  csrc/cuda/image_enlarge.cu
  csrc/cuda/image_quantize.cu
  csrc/cuda/row_quantize.cu
  csrc/cuda/temporal_gather.cu)

set(_tfq_why_not "")
if(TFQ_CUDA STREQUAL "OFF")
  set(_tfq_why_not "TFQ_CUDA=OFF")
else()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(_tfq_why_not "no nvcc found")
  endif()
endif()

if(_tfq_why_not)
  if(TFQ_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TFQ_CUDA=ON: ${_tfq_why_not}; put nvcc on PATH or name it in CUDACXX")
  endif()
  message(STATUS "tfq CUDA: off (${_tfq_why_not})")
  list(APPEND TFQ_CUDA_SOURCES csrc/cuda/stubs.cpp)
  function(tfq_link_cuda target)
  endfunction()
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES "${TFQ_CUDA_ARCHS}")
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
message(STATUS "tfq CUDA: on (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${TFQ_CUDA_ARCHS})")
list(APPEND TFQ_CUDA_SOURCES
  csrc/cuda/conv2d_s8.cpp
  csrc/cuda/device.cpp
  csrc/cuda/gemm_s8.cpp
  csrc/cuda/overlap.cpp
  csrc/cuda/product_launch.cpp
  csrc/cuda/tensor_map.cpp
  ${_tfq_cuda_kernels})

# No contraction: explicit fma alone, as on the CPU. The runtime is linked statically, so that the
# module loads where there is no driver.
function(tfq_link_cuda target)
  string(REPLACE ";" "," archs "${TFQ_CUDA_ARCHS}")
  set_source_files_properties(csrc/cuda/device.cpp PROPERTIES
    COMPILE_DEFINITIONS "TFQ_CUDA_ARCHS=\"${archs}\"")
  set_target_properties(${target} PROPERTIES
    CUDA_VISIBILITY_PRESET hidden
    CUDA_RUNTIME_LIBRARY Static)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
endfunction()

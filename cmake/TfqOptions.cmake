# Build options. setup.py forwards the environment variables of the same names.
set(TFQ_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE TFQ_CUDA PROPERTY STRINGS AUTO ON OFF)
string(TOUPPER "${TFQ_CUDA}" _tfq_cuda)
if(NOT _tfq_cuda MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "TFQ_CUDA must be AUTO, ON or OFF, got '${TFQ_CUDA}'")
endif()
set(TFQ_CUDA ${_tfq_cuda})
option(TFQ_WERROR "Treat compiler warnings as errors (used by CI)" OFF)
option(TFQ_SANITIZE "Build tests/cpu, the CPU kernels under sanitizers, in the place of the module" OFF)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  message(FATAL_ERROR "tfq builds for x86-64, not for ${CMAKE_SYSTEM_PROCESSOR}")
endif()

# The same float results on every level and compiler: no contraction, no fast math. errno and traps of
# the math functions are not observed by anyone.
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-fno-math-errno;-fno-trapping-math>"
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffp-contract=off>)

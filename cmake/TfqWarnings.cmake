# -Wmaybe-uninitialized: GCC's own AVX-512 header trips it (GCC bug 105593).
function(tfq_set_warnings target)
  set(flags -Wall -Wextra -Wshadow -Wconversion -Wno-maybe-uninitialized)
  if(TFQ_WERROR)
    list(APPEND flags -Werror)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
    # Neither nvcc nor ptxas has an option for what CompileCuda.cmake refuses.
    set_property(TARGET ${target} PROPERTY CUDA_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/CompileCuda.cmake --
      ${CMAKE_CUDA_COMPILER_LAUNCHER})
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
endfunction()

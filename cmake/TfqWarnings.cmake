# -Wmaybe-uninitialized: GCC's own AVX-512 header trips it (GCC bug 105593).
function(tfq_set_warnings target)
  set(flags -Wall -Wextra -Wshadow -Wconversion -Wno-maybe-uninitialized)
  if(TFQ_WERROR)
    list(APPEND flags -Werror)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
endfunction()

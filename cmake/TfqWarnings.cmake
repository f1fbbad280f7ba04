# -Wmaybe-uninitialized: GCC's own AVX-512 header trips it (GCC bug 105593).
function(tfq_set_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion -Wno-maybe-uninitialized)
  if(TFQ_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()

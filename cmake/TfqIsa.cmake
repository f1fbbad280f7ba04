# Instruction-set flags, per file: one list of sources and one list of flags per level. Nothing outside
# these lists may use an instruction above the x86-64 baseline, and a level's files exclude what is above
# it, so that the compiler cannot drift upwards.
set(TFQ_FLAGS_AVX2 -mavx2 -mfma -mno-avx512f)
set(TFQ_FLAGS_AVX512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mno-avx512bf16)
set(TFQ_FLAGS_AVX512VNNI ${TFQ_FLAGS_AVX512} -mavx512vnni)
set(TFQ_FLAGS_AMX ${TFQ_FLAGS_AVX512VNNI} -mamx-tile -mamx-int8)

set(TFQ_SOURCES_SCALAR
  csrc/cpu/attention_s8/scalar.cpp
  csrc/cpu/dequantize_weight/scalar.cpp
  csrc/cpu/epilogue/scalar.cpp
  csrc/cpu/expand_s4/scalar.cpp
  csrc/cpu/norm_act/scalar.cpp
  csrc/cpu/quantize/scalar.cpp
  csrc/cpu/temporal_gather/scalar.cpp
  csrc/cpu/gemm_s8/scalar.cpp
  csrc/cpu/winograd_s16/scalar.cpp)
set(TFQ_SOURCES_AVX2
  csrc/cpu/attention_s8/avx2.cpp
  csrc/cpu/dequantize_weight/avx2.cpp
  csrc/cpu/epilogue/avx2.cpp
  csrc/cpu/expand_s4/avx2.cpp
  csrc/cpu/norm_act/avx2.cpp
  csrc/cpu/quantize/avx2.cpp
  csrc/cpu/temporal_gather/avx2.cpp
  csrc/cpu/gemm_s8/avx2.cpp
  csrc/cpu/winograd_s16/avx2.cpp)
set(TFQ_SOURCES_AVX512
  csrc/cpu/attention_s8/avx512.cpp
  csrc/cpu/dequantize_weight/avx512.cpp
  csrc/cpu/epilogue/avx512.cpp
  csrc/cpu/expand_s4/avx512.cpp
  csrc/cpu/norm_act/avx512.cpp
  csrc/cpu/quantize/avx512.cpp
  csrc/cpu/temporal_gather/avx512.cpp)
set(TFQ_SOURCES_AVX512VNNI
  csrc/cpu/gemm_s8/avx512vnni.cpp
  csrc/cpu/winograd_s16/avx512vnni.cpp)
set(TFQ_SOURCES_AMX
  csrc/cpu/gemm_s8/amx.cpp)

function(tfq_add_isa_sources target)
  target_sources(${target} PRIVATE ${TFQ_SOURCES_SCALAR})
  foreach(level AVX2 AVX512 AVX512VNNI AMX)
    target_sources(${target} PRIVATE ${TFQ_SOURCES_${level}})
    set_source_files_properties(${TFQ_SOURCES_${level}} PROPERTIES COMPILE_OPTIONS "${TFQ_FLAGS_${level}}")
  endforeach()
endfunction()

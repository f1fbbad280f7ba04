// cuTensorMapEncodeTiled is the driver's; asked for at run time, so that the module loads where
// there is no driver.
#include "cuda/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "cuda/device.h"

namespace tfq::cuda {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) &&
              alignof(TensorMap) >= alignof(CUtensorMap));

template <typename Function>
Function driver_function(const char* name) {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  constexpr unsigned int kSince = 12000;  // CUDA 12.0
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &symbol, kSince, cudaEnableDefault, &found);
#else
  const cudaError_t status = cudaGetDriverEntryPoint(name, &symbol, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess)
    throw CudaError(message("CUDA: the driver has no ", name, " (", cudaGetErrorName(status),
                            "); needs CUDA 12.0 or later"));
  return reinterpret_cast<Function>(symbol);
}

void check(CUresult status, const char* call, int64_t rows, int64_t row_bytes, int box_rows,
           int box_bytes) {
  if (status != CUDA_SUCCESS)
    throw CudaError(message("CUDA: ", call, " failed with code ", static_cast<int>(status),
                            " for (", rows, ", ", row_bytes, ") and a box (", box_rows, ", ",
                            box_bytes, ")"));
}

CUtensorMapSwizzle native(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    case Swizzle::kNone:
      break;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

TensorMap matrix_map(const void* base, int64_t rows, int64_t row_bytes, int box_rows, int box_bytes,
                     Swizzle swizzle) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  TensorMap map{};
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  check(encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
               const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               native(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "cuTensorMapEncodeTiled", rows, row_bytes, box_rows, box_bytes);
  return map;
}

TensorMap image_map(const void* base, int64_t batch, int64_t height, int64_t width,
                    int64_t channels, const TapOrigins& taps, int box_rows, int box_bytes,
                    Swizzle swizzle) {
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t sizes[] = {size(channels), size(width), size(height), size(batch)};
  const cuuint64_t strides[] = {size(channels), size(channels * width),
                                size(channels * width * height)};
  const int lower[] = {-taps.pad_left, -taps.pad_top};
  const int upper[] = {
      static_cast<int>(upper_corner(width, taps.out_w, taps.stride_w, taps.pad_left)),
      static_cast<int>(upper_corner(height, taps.out_h, taps.stride_h, taps.pad_top))};
  const cuuint32_t steps[] = {1, static_cast<cuuint32_t>(taps.stride_w),
                              static_cast<cuuint32_t>(taps.stride_h), 1};
  TensorMap map{};
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  check(encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 4,
               const_cast<void*>(base), sizes, strides, lower, upper,
               static_cast<cuuint32_t>(box_bytes), static_cast<cuuint32_t>(box_rows), steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, native(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "cuTensorMapEncodeIm2col", batch * height * width, channels, box_rows, box_bytes);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return without_small_image_bug(map, driver, batch * height * width * channels);
}

}  // namespace tfq::cuda

// cuTensorMapEncodeTiled is the driver's; asked for at run time, so that the module loads where there
// is no driver.
#include "cuda/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "cuda/device.h"

namespace tfq::cuda {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    constexpr unsigned int kSince = 12000;  // CUDA 12.0
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &symbol, kSince, cudaEnableDefault, &found);
    if (status != cudaSuccess || found != cudaDriverEntryPointSuccess)
      throw CudaError(message("CUDA: the driver has no cuTensorMapEncodeTiled (",
                              cudaGetErrorName(status), "); needs CUDA 12.0 or later"));
    return reinterpret_cast<EncodeTiled>(symbol);
  }();
  return function;
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
  const CUresult status = encode_tiled()(
      reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
      const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      native(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw CudaError(message("CUDA: cuTensorMapEncodeTiled failed with code ",
                            static_cast<int>(status), " for a matrix (", rows, ", ", row_bytes,
                            ") and a box (", box_rows, ", ", box_bytes, ")"));
  return map;
}

}  // namespace tfq::cuda

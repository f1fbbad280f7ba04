// The integer product a convolution is, and what its kernels ask of it; built everywhere.
#pragma once

#include "cuda/gemm_config.h"

namespace tfq::cuda {

// m = batch * out_h * out_w, n = out channels, k = kernel_h * kernel_w * (channels + channels2).
// `tap_sums`: whether there are any (ProductOptions). Throws std::invalid_argument if the kernels
// cannot gather such an image.
ProductProblem conv_problem(const ConvGeometry& geometry, int64_t channels2, int64_t workspace,
                            bool tap_sums);

// The same convolution of the enlarged image, of upsample 1.
ConvGeometry enlarged(ConvGeometry geometry);

}  // namespace tfq::cuda

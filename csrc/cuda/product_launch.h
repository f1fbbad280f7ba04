// What the launchers of GEMM and convolution share.
#pragma once

#include "cuda/cuda.h"
#include "cuda/launch_config.h"

namespace tfq::cuda {

// Throws std::invalid_argument for operands that would make a kernel read or write out of place.
void check_product(const char* operation, const Epilogue& epilogue, int64_t m, int64_t n);
void check_aligned(const char* operation, const char* name, const void* address);

GemmLaunch product_launch(const Epilogue& epilogue, const ProductOptions& options,
                          const ProductProblem& problem, const int8_t* weight, const Tile& tile,
                          int splits);

// A block for each tile and part of k.
simt::LaunchConfig product_config(const char* kernel, const ProductProblem& problem,
                                  const Tile& tile, int splits, void* stream);

// Whole clusters, at most a block for each multiprocessor; blocks take several tiles.
simt::LaunchConfig persistent_config(const char* kernel, const ProductProblem& problem,
                                     const Tile& tile, int splits, const DeviceFacts& device,
                                     void* stream);

// Rows of A whose depth follows that of the first source; depth 0: there are none.
struct SecondSource {
  const uint8_t* x = nullptr;
  int64_t depth = 0;
};

// Queue the kernel of tile `index`, which is of that level.
void launch_gemm_sm80(const GemmLaunch& product, const ProductProblem& problem, int index,
                      void* stream);
void launch_gemm_sm90(const GemmLaunch& product, const SecondSource& second,
                      const ProductProblem& problem, int index, const DeviceFacts& device,
                      void* stream);
void launch_conv_sm80(const ConvLaunch& conv, const ProductProblem& problem, int index,
                      void* stream);
void launch_conv_sm90(const ConvLaunch& conv, const int32_t* tap_sums,
                      const ProductProblem& problem, int index, const DeviceFacts& device,
                      void* stream);

// Queues the kernel that writes the images of `geometry`, of upsample 2, enlarged to `out`.
void enlarge_images(const ConvGeometry& geometry, const uint8_t* x, uint8_t* out,
                    const Launch& launch);

}  // namespace tfq::cuda

// Launch of what enlarges the images of a convolution.
#include "cuda/image_enlarge.cuh"

#include "common/math.h"
#include "cuda/bandwidth.h"
#include "cuda/product_launch.h"

namespace tfq::cuda {

void enlarge_images(const ConvGeometry& g, const uint8_t* x, uint8_t* out, const Launch& launch) {
  const int64_t chunks = g.channels / kEnlargeChunk;
  const int64_t items = g.batch * g.in_h * g.in_w * chunks;
  const EnlargeLaunch args{x, narrow("conv2d_s8", g.in_w), narrow("conv2d_s8", chunks),
                           narrow("conv2d_s8", items + kEnlargeThreads) - kEnlargeThreads, out};
  simt::launch(image_enlarge,
               bandwidth_config("image_enlarge",
                                {static_cast<uint32_t>(ceil_div(items, kEnlargeThreads)), 1, 1},
                                kEnlargeThreads, 0, launch),
               args);
}

}  // namespace tfq::cuda

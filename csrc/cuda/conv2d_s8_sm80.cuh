// Zero-padded 2-D convolution over NHWC as an implicit GEMM, for sm_80 and later: the product and
// the epilogue of the GEMM, with rows of A gathered from the image.
//
// Depth is (kernel row, kernel column, channel). A thread copies one chunk of 16 channels of each of
// its rows; which tap and channel it is follows from the k-block alone, so any kernel, stride and
// padding costs the same, and depth is not padded per tap. A tap outside the image has the real
// value 0: the thread stores the image's zero-point there itself, which keeps the epilogue free of
// border cases (filling zeros and correcting would need a table of weight sums per border class,
// nine for a 3x3 kernel, and a lookup per row).
#pragma once

#include "cuda/gemm_s8_sm80.cuh"

namespace tfq::cuda {

// Rows of A: output positions from `first_row` on.
template <int Rows, int Threads>
class ImageLoader {
  using Mine = ThreadRows<Rows, Threads>;

 public:
  TFQ_DEVICE ImageLoader(const ConvLaunch& args, int first_row, int first_block) : args_(args) {
    const int pixels = args.out_h * args.out_w;
#pragma unroll
    for (int i = 0; i < Mine::kCount; ++i) {
      const int row = first_row + Mine::row(i);
      const int image = row / pixels;
      const int pixel = row - image * pixels;
      const int y = pixel / args.out_w;
      image_[i] = row < args.product.m ? image : -1;
      top_[i] = static_cast<int16_t>(y * args.stride_h - args.pad_top);
      left_[i] = static_cast<int16_t>((pixel - y * args.out_w) * args.stride_w - args.pad_left);
    }
    const int channels = args.channels + args.channels2;
    const int k = first_block * kBlockK + Mine::chunk() * kChunkBytes;
    const int tap = k / channels;
    channel_ = k - tap * channels;
    tap_y_ = tap / args.kernel_w;
    tap_x_ = tap - tap_y_ * args.kernel_w;
  }

  // Queues the next k-block; blocks must be loaded in order.
  TFQ_DEVICE void load(int, uint32_t stage) {
    const bool deep = tap_y_ < args_.kernel_h;  // false beyond the end of k
    const bool second = channel_ >= args_.channels;
    const uint8_t* source = second ? args_.x2 : args_.x;
    const int source_channels = second ? args_.channels2 : args_.channels;
    const int channel = second ? channel_ - args_.channels : channel_;
    const int height = args_.in_h << args_.upsample_shift;
    const int width = args_.in_w << args_.upsample_shift;
#pragma unroll
    for (int i = 0; i < Mine::kCount; ++i) {
      if (!Mine::exists(i)) continue;
      const uint32_t target = stage + chunk_offset(Mine::row(i), Mine::chunk());
      const int y = top_[i] + tap_y_, x = left_[i] + tap_x_;
      const bool row_exists = deep && image_[i] >= 0;
      const bool inside = static_cast<uint32_t>(y) < static_cast<uint32_t>(height) &&
                          static_cast<uint32_t>(x) < static_cast<uint32_t>(width);
      if (row_exists && !inside && !simt::fault(simt::kFaultPaddingIsZero)) {
        store_zero_point(target, image_[i]);
        continue;
      }
      const bool valid = row_exists && inside;
      const int pixel = (image_[i] * args_.in_h + (y >> args_.upsample_shift)) * args_.in_w +
                        (x >> args_.upsample_shift);
      const int64_t offset = valid ? static_cast<int64_t>(pixel) * source_channels + channel : 0;
      ptx::copy_async(target, (valid ? source : args_.x) + offset, valid);
    }
    advance();
  }

 private:
  TFQ_DEVICE void store_zero_point(uint32_t target, int image) const {
    const QParams& input = args_.product.epilogue.input;
    const float z = input.data[image / args_.images_per_qparam * input.stride + 2];
    const uint32_t word = static_cast<uint32_t>(z) * 0x01010101u;
    *simt::shared_at<ptx::Vector4>(target) = {{word, word, word, word}};
  }

  TFQ_DEVICE void advance() {
    channel_ += kBlockK;
    while (channel_ >= args_.channels + args_.channels2) {
      channel_ -= args_.channels + args_.channels2;
      if (++tap_x_ == args_.kernel_w) {
        tap_x_ = 0;
        ++tap_y_;
      }
    }
  }

  const ConvLaunch& args_;
  int image_[Mine::kCount];
  int16_t top_[Mine::kCount], left_[Mine::kCount];  // of the receptive field, in the enlarged image
  int channel_, tap_y_, tap_x_;
};

template <int TileIndex>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kTiles[TileIndex].threads(), kTiles[TileIndex].blocks)
    conv2d_s8_sm80(TFQ_GRID_CONSTANT const ConvLaunch args) {
  using Shape = TileShape<TileIndex>;
  const TilePosition tile = tile_of_block<Shape>(args.product);
  const KRange range = k_range(k_blocks(args.product.k), args.product.split.count,
                               static_cast<int>(simt::block_index().z));
  ImageLoader<Shape::kBlockM, Shape::kThreads> loader_a(args, tile.row * Shape::kBlockM,
                                                        range.begin);
  product_tile<Shape, false>(args.product, loader_a, tile);
}

}  // namespace tfq::cuda

// Images enlarged twofold by nearest neighbour, for a convolution whose copies cannot enlarge. A thread
// reads one chunk of channels of a pixel and writes it four times.
#pragma once

#include "cuda/elements.cuh"

namespace tfq::cuda {

constexpr int kEnlargeThreads = 256;
constexpr int kEnlargeChunk = 16;  // bytes

struct EnlargeLaunch {
  const uint8_t* x;       // (rows, width, chunks * kEnlargeChunk)
  int32_t width, chunks;
  int32_t items;          // rows * width * chunks
  uint8_t* out;           // (2 * rows, 2 * width, chunks * kEnlargeChunk)
};

// grid = items / kEnlargeThreads
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(kEnlargeThreads, 4)
    image_enlarge(TFQ_GRID_CONSTANT const EnlargeLaunch args) {
  ptx::begin_kernel();
  const int item =
      static_cast<int>(simt::block_index().x) * kEnlargeThreads + simt::thread_index();
  if (item >= args.items + (simt::fault(simt::kFaultStoreBeyondRows) ? 1 : 0)) return;
  const int pixel = item / args.chunks, chunk = item - pixel * args.chunks;
  const int row = pixel / args.width, column = pixel - row * args.width;
  uint32_t words[kEnlargeChunk / 4];
  load_words(args.x + int64_t{item} * kEnlargeChunk, words);
#pragma unroll
  for (int y = 0; y < 2; ++y) {
    const int64_t target = (2 * int64_t{row} + y) * 2 * args.width + 2 * column;
#pragma unroll
    for (int x = 0; x < 2; ++x)
      store_words(args.out + ((target + x) * args.chunks + chunk) * kEnlargeChunk, words);
  }
}

}  // namespace tfq::cuda

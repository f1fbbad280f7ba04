// The instructions of csrc/cuda/ptx_sm90.cuh on fixed inputs, one line of hexadecimal words each: where a
// bulk copy puts bytes and zeros, of taps too and in both blocks of a cluster, and every register of a
// product. Built with nvcc it says what a Hopper does, built for the host what the emulation does; a test
// compares the lines (tests/gpu/test_conformance.py).
#include <cstdio>
#include <cstring>

#include "cuda/ptx_sm90.cuh"
#include "conformance.h"

namespace {

using namespace tfq;
using cuda::Swizzle;

constexpr int kRows = 250, kRowBytes = 208;  // of both operands: the boxes reach beyond
constexpr int kBoxA = 64, kDepth = 32;       // rows; of one product
constexpr uint32_t kBarrier = 0, kA = 1024, kB = kA + kBoxA * 128;
constexpr uint32_t kSharedBytes = kB + 160 * 128;
constexpr int kThreads = 128;

struct Probe {
  cuda::TensorMap a, b;
  uint32_t* out;
  int row, column;  // of the boxes
};

template <Swizzle kSwizzle, int N>
TFQ_DEVICE void load_operands(const Probe& p) {
  if (simt::thread_index() == 0) {
    ptx::init_barrier(kBarrier, 1);
    ptx::publish_barriers();
    ptx::arrive_expecting(kBarrier, (kBoxA + N) * static_cast<uint32_t>(kSwizzle));
    ptx::load_box(kA, p.a, kBarrier, p.row, p.column);
    ptx::load_box(kB, p.b, kBarrier, p.row, p.column);
  }
  simt::sync_block();
  ptx::wait_barrier(kBarrier, 0);
}

template <Swizzle kSwizzle, int N>
TFQ_KERNEL copies(TFQ_GRID_CONSTANT const Probe p) {
  if constexpr (ptx::kHasWgmma) {
    load_operands<kSwizzle, N>(p);
    constexpr int kWords = (kBoxA + N) * static_cast<int>(kSwizzle) / 4;
    for (int i = simt::thread_index(); i < kWords; i += kThreads) {
      const int a_words = kBoxA * static_cast<int>(kSwizzle) / 4;
      const uint32_t at = i < a_words ? kA + 4 * static_cast<uint32_t>(i)
                                      : kB + 4 * static_cast<uint32_t>(i - a_words);
      p.out[i] = *simt::shared_at<uint32_t>(at);
    }
  }
}

// Twice: the second product is added to the first.
template <Swizzle kSwizzle, int N>
TFQ_KERNEL products(TFQ_GRID_CONSTANT const Probe p) {
  if constexpr (ptx::kHasWgmma) {
    load_operands<kSwizzle, N>(p);
    ptx::Sums<N> sums;
    constexpr uint32_t kSecond = static_cast<uint32_t>(kSwizzle) - kDepth;
    ptx::fence_products();
    ptx::multiply_add_u8s8(sums, ptx::matrix_descriptor(kA, kSwizzle),
                           ptx::matrix_descriptor(kB, kSwizzle), false);
    ptx::multiply_add_u8s8(sums, ptx::matrix_descriptor(kA + kSecond, kSwizzle),
                           ptx::matrix_descriptor(kB + kSecond, kSwizzle), true);
    ptx::commit_products();
    ptx::wait_products<0>();
#pragma unroll
    for (int j = 0; j < N / 8; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        p.out[(4 * j + r) * kThreads + simt::thread_index()] = static_cast<uint32_t>(sums[j][r]);
  }
}

// Each block of a cluster copies a box to both, waits for both, and says that the other may end.
constexpr int kCluster = 2, kBoxWords = kBoxA * 128 / 4;
TFQ_KERNEL multicasts(TFQ_GRID_CONSTANT const Probe p) {
  if constexpr (ptx::kHasWgmma) {
    constexpr uint32_t kDone = kBarrier + 8, kBytes = 4 * kBoxWords;
    const auto rank = static_cast<int>(simt::block_index().x);
    if (simt::thread_index() == 0) {
      ptx::init_barrier(kBarrier, 1);
      ptx::init_barrier(kDone, kCluster * kThreads / simt::kWarpSize);
      ptx::publish_barriers();
    }
    ptx::sync_cluster();
    if (simt::thread_index() == 0) {
      ptx::arrive_expecting(kBarrier, kCluster * kBytes);
      ptx::load_box_multicast(kA + static_cast<uint32_t>(rank) * kBytes, rank ? p.b : p.a, kBarrier,
                              p.row, p.column, (1u << kCluster) - 1);
    }
    ptx::wait_barrier(kBarrier, 0);
    for (int i = simt::thread_index(); i < kCluster * kBoxWords; i += kThreads)
      p.out[rank * kCluster * kBoxWords + i] =
          *simt::shared_at<uint32_t>(kA + 4 * static_cast<uint32_t>(i));
    if (simt::lane_index() < kCluster) ptx::arrive_at(simt::lane_index(), kDone);
    ptx::wait_barrier(kDone, 0);
    ptx::sync_cluster();
  }
}

// A box of an image_map: the taps (tap_y, tap_x) of 64 outputs from `first` on.
struct TapsProbe {
  cuda::TensorMap map;
  uint32_t* out;
  ptx::FirstTap first;
  int tap_y, tap_x, channel;
};
constexpr int kTapsBytes = 64, kTapsWords = kBoxA * kTapsBytes / 4;  // bytes of an output

TFQ_KERNEL taps(TFQ_GRID_CONSTANT const TapsProbe p) {
  if constexpr (ptx::kHasWgmma) {
    if (simt::thread_index() == 0) {
      ptx::init_barrier(kBarrier, 1);
      ptx::publish_barriers();
      ptx::arrive_expecting(kBarrier, 4 * kTapsWords);
      ptx::load_taps(kA, p.map, kBarrier, p.first, p.tap_y, p.tap_x, p.channel);
    }
    simt::sync_block();
    ptx::wait_barrier(kBarrier, 0);
    for (int i = simt::thread_index(); i < kTapsWords; i += kThreads)
      p.out[i] = *simt::shared_at<uint32_t>(kA + 4 * static_cast<uint32_t>(i));
  }
}

struct Image {
  int batch, height, width, channels;
  cuda::TapOrigins origins;
  int kernel;
};

constexpr Image kImages[] = {
    {2, 5, 7, 80, {5, 7, 1, 1, 1, 1}, 3},      // padding on all sides
    {3, 9, 8, 80, {4, 4, 2, 2, 0, 0}, 3},      // stride 2, padding at the right and the bottom alone
    {2, 11, 10, 80, {6, 5, 2, 2, 1, 1}, 3},    // stride 2, padding at the left and the top
    {70, 1, 1, 80, {1, 1, 1, 1, 1, 1}, 3},     // one first tap
    {1, 30, 30, 16, {5, 5, 7, 8, 2, 1}, 4},    // different strides, and 4 x 4
    {1, 6, 20, 32, {3, 14, 1, 1, 0, 0}, 7},    // corners inside of the image
    {2, 3, 3, 16, {9, 9, 1, 1, 4, 4}, 3},      // taps that miss the image altogether
};

// The bit that drivers up to 13.1 set for tensors below 128 KiB (csrc/cuda/tensor_map.cpp): as the library has
// it, or one or the other. The emulation's maps have no such bit.
enum class SmallTensorBit { kAsLibrary, kCleared, kSet };

cuda::TensorMap with_bit(cuda::TensorMap map, [[maybe_unused]] SmallTensorBit bit) {
#ifndef TFQ_SIMT_HOST
  constexpr uint64_t kBit = uint64_t{1} << 21;
  if (bit == SmallTensorBit::kCleared) map.words[1] &= ~kBit;
  if (bit == SmallTensorBit::kSet) map.words[1] |= kBit;
#endif
  return map;
}

// From the first output, from one in the middle, and from beyond the last image; with the channels that
// are there, with those of which some are, and with none.
void run_taps(SmallTensorBit bit, const uint8_t* data, uint32_t* out) {
  for (const Image& i : kImages) {
    const cuda::TapOrigins& o = i.origins;
    const int outputs = i.batch * o.out_h * o.out_w;
    const cuda::TensorMap map =
        with_bit(cuda::image_map(data, i.batch, i.height, i.width, i.channels, o, kBoxA, kTapsBytes,
                                 Swizzle::k64),
                 bit);
    for (const int output : {0, outputs / 2, outputs - 1, outputs + 1})
      for (const int tap : {0, i.kernel / 2, i.kernel - 1})
        for (const int channel : {0, i.channels / 64 * 64, (i.channels + 63) / 64 * 64}) {
          const int pixel = output % (o.out_h * o.out_w);
          const TapsProbe p{map,
                            out,
                            {output / (o.out_h * o.out_w), pixel / o.out_w * o.stride_h - o.pad_top,
                             pixel % o.out_w * o.stride_w - o.pad_left},
                            tap,
                            i.kernel - 1 - tap,
                            channel};
          for (int w = 0; w < kTapsWords; ++w) out[w] = 0xdeadbeefu;
          simt::launch(taps, {"taps", {1, 1, 1}, kThreads, kSharedBytes, nullptr}, p);
          finish();
          std::printf("taps %dx%dx%dx%d %d %d %d", i.batch, i.height, i.width, i.channels, output, tap,
                      channel);
          for (int w = 0; w < kTapsWords; ++w) std::printf(" %08x", out[w]);
          std::printf("\n");
        }
  }
}

void run(const char* name, void (*kernel)(const Probe), const Probe& p, int words,
         uint32_t cluster = 1) {
  for (int i = 0; i < words; ++i) p.out[i] = 0xdeadbeefu;
  simt::launch(kernel, {name, {cluster, 1, 1}, kThreads, kSharedBytes, nullptr, cluster}, p);
  finish();
  std::printf("%s %d %d", name, p.row, p.column);
  for (int i = 0; i < words; ++i) std::printf(" %08x", p.out[i]);
  std::printf("\n");
}

template <Swizzle kSwizzle, int N>
void run_all(const char* copies_name, const char* products_name, const uint8_t* a, const uint8_t* b,
             uint32_t* out) {
  constexpr int kBytes = static_cast<int>(kSwizzle);
  const struct {
    int row, column;
  } places[] = {{0, 0}, {7, 64}, {192, 128}, {248, 192}};  // inside; beyond rows, columns, both
  for (const auto& place : places) {
    const Probe p{cuda::matrix_map(a, kRows, kRowBytes, kBoxA, kBytes, kSwizzle),
                  cuda::matrix_map(b, kRows, kRowBytes, N, kBytes, kSwizzle), out, place.row,
                  place.column};
    run(copies_name, copies<kSwizzle, N>, p, (kBoxA + N) * kBytes / 4);
    run(products_name, products<kSwizzle, N>, p, N / 2 * kThreads);
  }
}

}  // namespace

// With an argument the taps alone, of images that are all small: with the bit "cleared", or "set", with which
// the card may do anything.
int main(int argc, char** argv) {
  constexpr size_t kBytes = kRows * kRowBytes;
  auto* a = static_cast<uint8_t*>(allocate(kBytes));
  auto* b = static_cast<uint8_t*>(allocate(kBytes));
  constexpr size_t kOutWords = 160 / 2 * kThreads;
  static_assert(kCluster * kCluster * kBoxWords <= kOutWords);
  auto* out = static_cast<uint32_t*>(allocate(kOutWords * sizeof(uint32_t)));
  for (uint32_t i = 0; i < kBytes; ++i) {
    a[i] = static_cast<uint8_t>((i + 1) * 0x9e3779b9u >> 23);
    b[i] = static_cast<uint8_t>((i + 1) * 0x85ebca6bu >> 22);
  }
  a = on_card(a, kBytes);
  b = on_card(b, kBytes);
  if (argc > 1) {
    const bool cleared = std::strcmp(argv[1], "cleared") == 0;
    run_taps(cleared ? SmallTensorBit::kCleared : SmallTensorBit::kSet, a, out);
    return 0;
  }
  run_all<Swizzle::k128, 160>("copies_128_160", "products_128_160", a, b, out);
  run_all<Swizzle::k128, 128>("copies_128_128", "products_128_128", a, b, out);
  run_all<Swizzle::k64, 160>("copies_64_160", "products_64_160", a, b, out);
  run_all<Swizzle::k32, 128>("copies_32_128", "products_32_128", a, b, out);
  const Probe p{cuda::matrix_map(a, kRows, kRowBytes, kBoxA, 128, Swizzle::k128),
                cuda::matrix_map(b, kRows, kRowBytes, kBoxA, 128, Swizzle::k128), out, 192, 128};
  run("multicasts", multicasts, p, kCluster * kCluster * kBoxWords, kCluster);
  run_taps(SmallTensorBit::kAsLibrary, a, out);
  return 0;
}

// What wgmma reaches on integers when nothing else is in its way: operands stay in shared memory, no
// copies, no epilogue. One JSON object a line: for each width of a product, one and two warpgroups a
// multiprocessor, random values and zeros. Built and run by bench/gpu.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/ptx_sm90.cuh"

namespace {

using namespace tfq;
using cuda::Swizzle;

constexpr int kStages = 4, kRowBytes = 128, kProductDepth = 32, kProductRows = 64;
constexpr int kRounds = 4096, kRuns = 9, kThreads = 128;  // of a warpgroup

struct Args {
  uint32_t mask;  // of the values: 0 makes zeros
  int32_t* out;
};

template <int N, int Warpgroups>
constexpr int kSharedBytes = kStages * (kProductRows * Warpgroups + N) * kRowBytes;

template <int N, int Warpgroups>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(Warpgroups * kThreads, 1) products(const Args args) {
  if constexpr (ptx::kHasWgmma) {
    constexpr int kBytes = kSharedBytes<N, Warpgroups>;
    for (int i = 4 * simt::thread_index(); i < kBytes; i += 4 * simt::block_size())
      *simt::shared_at<uint32_t>(static_cast<uint32_t>(i)) =
          (static_cast<uint32_t>(i) + 1) * 0x9e3779b9u & args.mask;
    if (simt::thread_index() == 0) ptx::publish_barriers();  // the stores, to what wgmma reads by
    simt::sync_block();
    ptx::publish_barriers();
    ptx::Sums<N> sums;
    constexpr uint32_t kStageBytes = kBytes / kStages;
    const auto group = static_cast<uint32_t>(simt::thread_index() / kThreads);
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t stage = static_cast<uint32_t>(round % kStages) * kStageBytes;
      ptx::fence_products();
#pragma unroll
      for (int k = 0; k < kRowBytes; k += kProductDepth) {
        const auto step = static_cast<uint32_t>(k);
        const uint32_t a = stage + group * kProductRows * kRowBytes + step;
        const uint32_t b = stage + Warpgroups * kProductRows * kRowBytes + step;
        ptx::multiply_add_u8s8(sums, ptx::matrix_descriptor(a, Swizzle::k128),
                               ptx::matrix_descriptor(b, Swizzle::k128), round > 0 || k > 0);
      }
      ptx::commit_products();
      ptx::wait_products<1>();
    }
    ptx::wait_products<0>();
    int32_t total = 0;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) total += sums[j][0] ^ sums[j][1] ^ sums[j][2] ^ sums[j][3];
    args.out[simt::block_index().x * static_cast<uint32_t>(simt::block_size()) +
             static_cast<uint32_t>(simt::thread_index())] = total;
  }
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "wgmma_ceiling: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

template <int N, int Warpgroups>
void measure(const cudaDeviceProp& card, int32_t* out) {
  for (const uint32_t mask : {0xffffffffu, 0u}) {
    const Args args{mask, out};
    const simt::LaunchConfig config{"products",
                                    {static_cast<uint32_t>(card.multiProcessorCount), 1, 1},
                                    Warpgroups * kThreads,
                                    kSharedBytes<N, Warpgroups>,
                                    nullptr};
    cudaEvent_t start, end;
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&end));
    float milliseconds[kRuns];
    for (float& value : milliseconds) {
      simt::launch(products<N, Warpgroups>, config, args);  // untimed: the clock comes up
      check(cudaEventRecord(start));
      simt::launch(products<N, Warpgroups>, config, args);
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
      check(cudaEventElapsedTime(&value, start, end));
    }
    std::sort(milliseconds, milliseconds + kRuns);
    const double operations = 2.0 * kProductRows * N * kRowBytes * kRounds * Warpgroups;
    const double tops =
        operations * card.multiProcessorCount / (milliseconds[kRuns / 2] * 1e-3) * 1e-12;
    std::printf("{\"n\": %d, \"warpgroups\": %d, \"values\": \"%s\", \"ms\": %.4f, \"tops\": %.1f}\n",
                N, Warpgroups, mask ? "random" : "zeros", milliseconds[kRuns / 2], tops);
  }
}

}  // namespace

int main() {
  cudaDeviceProp card;
  check(cudaGetDeviceProperties(&card, 0));
  int32_t* out = nullptr;
  check(cudaMalloc(&out, sizeof(int32_t) * 2 * kThreads *
                             static_cast<size_t>(card.multiProcessorCount)));
  measure<128, 1>(card, out);
  measure<128, 2>(card, out);
  measure<160, 1>(card, out);
  measure<160, 2>(card, out);
  return 0;
}

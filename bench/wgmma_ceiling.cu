// What wgmma reaches on integers when nothing else is in its way: operands stay in shared memory, or the
// first in registers, no copies, no epilogue. One JSON object a line: for each width of a product, one and
// two warpgroups a multiprocessor, random values and zeros; cycles of a product of 64 rows, and the clock
// that the cycles of all and their time make. Built and run by bench/gpu.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "wgmma_products.cuh"

namespace {

using namespace tfq;
using cuda::Swizzle;

constexpr int kStages = 4, kRowBytes = 128, kProductDepth = 32, kProductRows = 64;
constexpr int kRounds = 4096, kRuns = 9, kThreads = 128;  // of a warpgroup

enum class Source { kShared, kRegisters };  // of the first operand

struct Args {
  uint32_t mask;  // of the values: 0 makes zeros
  int32_t* out;
  int64_t* cycles;  // of each multiprocessor
};

template <int N, int Warpgroups>
constexpr int kSharedBytes = kStages * (kProductRows * Warpgroups + N) * kRowBytes;

TFQ_DEVICE uint32_t value(uint32_t i, uint32_t mask) { return (i + 1) * 0x9e3779b9u & mask; }

template <int N, int Warpgroups, Source kSource>
TFQ_KERNEL TFQ_LAUNCH_BOUNDS(Warpgroups * kThreads, 1) products(const Args args) {
  if constexpr (ptx::kHasWgmma) {
    constexpr int kBytes = kSharedBytes<N, Warpgroups>;
    const auto thread = static_cast<uint32_t>(simt::thread_index());
    for (int i = 4 * simt::thread_index(); i < kBytes; i += 4 * simt::block_size())
      *simt::shared_at<uint32_t>(static_cast<uint32_t>(i)) =
          value(static_cast<uint32_t>(i), args.mask);
    uint32_t registers[4];
    for (uint32_t i = 0; i < 4; ++i) registers[i] = value(4 * thread + i, args.mask);
    if (simt::thread_index() == 0) ptx::publish_barriers();  // the stores, to what wgmma reads by
    simt::sync_block();
    ptx::publish_barriers();
    ptx::Sums<N> sums;
    constexpr uint32_t kStageBytes = kBytes / kStages;
    const uint32_t group = thread / kThreads;
    const int64_t start = clock64();
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t stage = static_cast<uint32_t>(round % kStages) * kStageBytes;
      ptx::fence_products();
#pragma unroll
      for (int k = 0; k < kRowBytes; k += kProductDepth) {
        const auto step = static_cast<uint32_t>(k);
        const uint32_t a = stage + group * kProductRows * kRowBytes + step;
        const uint32_t b = stage + Warpgroups * kProductRows * kRowBytes + step;
        const uint64_t columns = ptx::matrix_descriptor(b, Swizzle::k128);
        const bool accumulate = round > 0 || k > 0;
        if constexpr (kSource == Source::kRegisters)
          wgmma::multiply_add(sums, registers, columns, accumulate);
        else
          wgmma::multiply_add(sums, ptx::matrix_descriptor(a, Swizzle::k128), columns, accumulate);
      }
      ptx::commit_products();
      ptx::wait_products<1>();
    }
    ptx::wait_products<0>();
    const int64_t cycles = clock64() - start;
    int32_t total = 0;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) total += sums[j][0] ^ sums[j][1] ^ sums[j][2] ^ sums[j][3];
    const uint32_t block = simt::block_index().x;
    args.out[block * static_cast<uint32_t>(simt::block_size()) + thread] = total;
    if (thread == 0) args.cycles[block] = cycles;
  }
}

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "wgmma_ceiling: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

struct Card {
  uint32_t multiprocessors;
  int32_t* out;
  int64_t* cycles;  // of each, memory that the host reads too
};

template <int N, int Warpgroups, Source kSource>
void measure(const Card& card) {
  for (const uint32_t mask : {0xffffffffu, 0u}) {
    const Args args{mask, card.out, card.cycles};
    const simt::LaunchConfig config{"products",
                                    {card.multiprocessors, 1, 1},
                                    Warpgroups * kThreads,
                                    kSharedBytes<N, Warpgroups>,
                                    nullptr};
    const auto launch = [&] { simt::launch(products<N, Warpgroups, kSource>, config, args); };
    cudaEvent_t start, end;
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&end));
    float milliseconds[kRuns];
    for (float& value : milliseconds) {
      launch();  // untimed: the clock comes up
      check(cudaEventRecord(start));
      launch();
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
      check(cudaEventElapsedTime(&value, start, end));
    }
    check(cudaEventDestroy(start));
    check(cudaEventDestroy(end));
    const auto cycles = static_cast<double>(
        *std::max_element(card.cycles, card.cycles + card.multiprocessors));  // of the last launch
    const double megahertz = cycles / milliseconds[kRuns - 1] * 1e-3;
    std::sort(milliseconds, milliseconds + kRuns);
    const double products_made = double{kRounds} * (kRowBytes / kProductDepth) * Warpgroups;
    const double operations = 2.0 * kProductRows * N * kProductDepth * products_made;
    const double tops = operations * card.multiprocessors / (milliseconds[kRuns / 2] * 1e-3) * 1e-12;
    std::printf("{\"n\": %d, \"warpgroups\": %d, \"source\": \"%s\", \"values\": \"%s\", "
                "\"ms\": %.4f, \"tops\": %.1f, \"cycles\": %.2f, \"mhz\": %.0f}\n",
                N, Warpgroups, kSource == Source::kShared ? "SS" : "RS", mask ? "random" : "zeros",
                milliseconds[kRuns / 2], tops, cycles / products_made, megahertz);
  }
}

template <int N>
void measure_all(const Card& card) {
  measure<N, 1, Source::kShared>(card);
  measure<N, 2, Source::kShared>(card);
  measure<N, 1, Source::kRegisters>(card);
  measure<N, 2, Source::kRegisters>(card);
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  Card card{static_cast<uint32_t>(properties.multiProcessorCount), nullptr, nullptr};
  check(cudaMalloc(&card.out, sizeof(int32_t) * 2 * kThreads * card.multiprocessors));
  check(cudaMallocManaged(&card.cycles, sizeof(int64_t) * card.multiprocessors));
  measure_all<64>(card);
  measure_all<128>(card);
  measure_all<160>(card);
  measure_all<192>(card);
  measure_all<256>(card);
  return 0;
}

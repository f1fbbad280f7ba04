// The shim's launches that overlap with those before them: what a thread sees that has not waited.
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/ptx_sm90.cuh"
#include "launch_checks.h"
#include "overlap_host.h"

namespace {

using namespace tfq;
using cuda::Swizzle;

constexpr uint32_t kBarrier = 0, kTarget = 1024;
constexpr int kRows = 8, kRowBytes = 128, kThreads = 64;

struct Args {
  cuda::TensorMap map;
  uint8_t* memory;  // of the launches before, the matrix of `map`
  int32_t* out;     // a value a thread
};

std::string error_of(void (*kernel)(Args), const Args& args, bool overlaps = true) {
  return testing::launch_error(kernel, {"probe", {2, 1, 1}, kThreads, 4096, nullptr, 1, overlaps}, args);
}

TFQ_DEVICE int32_t& result(const Args& args) {
  return args.out[static_cast<int>(simt::block_index().x) * kThreads + simt::thread_index()];
}

TFQ_KERNEL reads(Args args) {
  ptx::wait_for_launches();
  result(args) = args.memory[simt::thread_index()];
}
// Half of the threads, while the others have waited.
TFQ_KERNEL reads_early(Args args) {
  if (simt::thread_index() % 2) ptx::wait_for_launches();
  simt::sync_block();
  result(args) = args.memory[simt::thread_index()];
}
TFQ_KERNEL writes_early(Args args) {
  if (simt::thread_index() == 3) args.memory[7] = 1;
  simt::sync_block();
  ptx::wait_for_launches();
}
TFQ_KERNEL never_waits(Args) {}

// Thread 0 asks for a copy before or after it has waited; all others have waited.
template <bool Early>
TFQ_KERNEL copies(Args args) {
  if (simt::thread_index() == 0) {
    ptx::init_barrier(kBarrier, 1);
    ptx::publish_barriers();
    if (!Early) ptx::wait_for_launches();
    ptx::arrive_expecting(kBarrier, kRows * kRowBytes);
    ptx::load_box(kTarget, args.map, kBarrier, 0, 0);
  }
  if (simt::thread_index() > 0) ptx::wait_for_launches();
  simt::sync_block();
  ptx::wait_barrier(kBarrier, 0);
  result(args) = *simt::shared_at<uint8_t>(kTarget);  // no swizzle in the first row
}

void threads_see_what_they_have_waited_for() {
  alignas(16) static uint8_t memory[kRows * kRowBytes];
  for (int i = 0; i < kRows * kRowBytes; ++i) memory[i] = static_cast<uint8_t>(i + 1);
  std::vector<int32_t> out(2 * kThreads);
  const Args args{cuda::matrix_map(memory, kRows, kRowBytes, kRows, kRowBytes, Swizzle::k128), memory,
                  out.data()};
  simt::set_unfinished_memory({{memory, sizeof memory}});
  const auto right = [&](int first, int step) {
    for (int i = first; i < 2 * kThreads; i += step)
      if (out[static_cast<size_t>(i)] != i % kThreads + 1) return false;
    return true;
  };
  CHECK(error_of(reads, args).empty() && right(0, 1));
  CHECK(error_of(reads_early, args).empty() && right(1, 2));
  for (int i = 0; i < 2 * kThreads; i += 2) CHECK(out[static_cast<size_t>(i)] == 0xA5);
  CHECK(error_of(reads_early, args, false).empty() && right(0, 1));
  CHECK(error_of(copies<false>, args).empty() && out[5] == 1);
  CHECK(error_of(copies<true>, args).empty() && out[5] == 0xA5);
  CHECK(error_of(writes_early, args).find("was written without waiting") != std::string::npos);
  CHECK(error_of(writes_early, args, false).empty() && memory[7] == 1);
  CHECK(error_of(never_waits, args).find("without having waited") != std::string::npos);
  CHECK(error_of(never_waits, args, false).empty());
  CHECK(memory[0] == 1 && memory[kRows * kRowBytes - 1] == static_cast<uint8_t>(kRows * kRowBytes));
  simt::set_unfinished_memory({});
  CHECK(error_of(reads_early, args).empty() && out[0] == 1);
}

}  // namespace

int main() {
  for (const auto order :
       {simt::Order::kForward, simt::Order::kReverse, simt::Order::kShuffled, simt::Order::kGreedy})
    for (const bool lazy : {false, true}) {
      simt::options() = {order, lazy, 5, 0};
      threads_see_what_they_have_waited_for();
    }
  return tfq::testing::finish("test_shim_overlap");
}

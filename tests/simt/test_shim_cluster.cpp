// The shim's clusters: blocks that run together, copies to all of them, barriers across them, reports.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/ptx_sm90.cuh"
#include "launch_checks.h"

namespace {

using namespace tfq;
using cuda::Swizzle;

constexpr uint32_t kCluster = 2, kThreads = 64, kAll = (1u << kCluster) - 1;
constexpr int kRows = 16, kRowBytes = 128;  // of the box a block copies, half of the matrix
constexpr uint32_t kBoxBytes = kRows * kRowBytes;
constexpr uint32_t kFull = 0, kEmpty = 8, kTarget = 1024;

struct Args {
  cuda::TensorMap map;
  int32_t* out;  // a value for each thread of the grid
};

std::string error_of(void (*kernel)(Args), Args args = {}, uint32_t blocks = 2 * kCluster) {
  return testing::launch_error(kernel, {"probe", {blocks, 1, 1}, kThreads, kTarget + kCluster * kBoxBytes, nullptr, kCluster}, args);
}

bool reports(void (*kernel)(Args), const char* text, Args args = {}) {
  return testing::contains(error_of(kernel, args), text);
}

TFQ_DEVICE int rank() { return static_cast<int>(simt::block_index().x % kCluster); }

TFQ_DEVICE void start() {
  if (simt::thread_index() == 0) {
    ptx::init_barrier(kFull, 1);
    ptx::init_barrier(kEmpty, kCluster * kThreads / simt::kWarpSize);
    ptx::publish_barriers();
  }
  ptx::sync_cluster();
}

TFQ_DEVICE void copy_share(const Args& args) {
  const int first = rank() * kRows;
  ptx::load_box_multicast(kTarget + static_cast<uint32_t>(first * kRowBytes), args.map, kFull, first,
                          0, kAll);
}

TFQ_DEVICE int32_t sum_of_boxes() {
  int32_t sum = 0;
  for (uint32_t i = 0; i < kCluster * kBoxBytes; ++i)
    sum += *simt::shared_at<uint8_t>(kTarget + i) * static_cast<int32_t>(1 + i / kBoxBytes);
  return sum;
}

TFQ_DEVICE int thread_of_grid() {
  return static_cast<int>(simt::block_index().x * kThreads) + simt::thread_index();
}

// Twice each block copies its share to both, which the other may still be reading.
TFQ_KERNEL shared_copies(Args args) {
  start();
  int32_t sum = 0;
  for (uint32_t round = 0; round < 2; ++round) {
    if (simt::thread_index() == 0) {
      ptx::wait_barrier(kEmpty, round ^ 1);
      ptx::arrive_expecting(kFull, kCluster * kBoxBytes);
      copy_share(args);
    }
    ptx::wait_barrier(kFull, round);
    sum += sum_of_boxes();
    simt::sync_warp();
    if (simt::lane_index() < static_cast<int>(kCluster))
      ptx::arrive_at(simt::lane_index(), kEmpty);
  }
  args.out[thread_of_grid()] = sum;
  if (simt::thread_index() == 0) ptx::wait_barrier(kEmpty, 1);
}

void a_copy_goes_to_all_blocks() {
  alignas(16) static uint8_t matrix[kCluster * kBoxBytes];
  int32_t expected = 0;
  for (uint32_t i = 0; i < kCluster * kBoxBytes; ++i) {
    matrix[i] = static_cast<uint8_t>(i * 37 + i / 97);
    expected += 2 * matrix[i] * static_cast<int32_t>(1 + i / kBoxBytes);
  }
  std::vector<int32_t> out(2 * kCluster * kThreads);
  const Args args{cuda::matrix_map(matrix, kCluster * kRows, kRowBytes, kRows, kRowBytes,
                                   Swizzle::k128), out.data()};
  CHECK(error_of(shared_copies, args).empty());
  for (const int32_t sum : out) CHECK(sum == expected);
}

TFQ_KERNEL ends_while_others_arrive(Args) {
  start();
  if (rank() == 1) return;
  for (int i = 0; i < 100; ++i) simt::sync_block();
  ptx::arrive_at(1, kEmpty);
}
TFQ_KERNEL ends_after_a_barrier_that_orders_nothing(Args) {
  start();
  if (simt::lane_index() == 0) ptx::arrive_at(rank() ^ 1, kEmpty);
  ptx::sync_cluster();
}
TFQ_KERNEL ends_before_a_copy(Args args) {
  start();
  if (simt::thread_index() == 0) ptx::arrive_expecting(kFull, kCluster * kBoxBytes);
  if (rank() == 1) return;
  if (simt::thread_index() == 0) copy_share(args);
  for (int i = 0; i < 100; ++i) simt::sync_block();
}
TFQ_KERNEL arrives_before_the_start(Args) { ptx::arrive_at(rank() ^ 1, kEmpty); }
TFQ_KERNEL arrives_nowhere(Args) {
  start();
  ptx::arrive_at(2, kEmpty);
}
TFQ_KERNEL copies_nowhere(Args args) {
  start();
  ptx::load_box_multicast(kTarget, args.map, kFull, 0, 0, 0);
}
TFQ_KERNEL one_block_does_not_come(Args) {
  if (rank() == 0) ptx::sync_cluster();
}

void reports_name_the_problem() {
  if (simt::options().order != simt::Order::kGreedy)
    CHECK(reports(ends_while_others_arrive, "block 1 of the cluster has ended"));
  alignas(16) static uint8_t matrix[kCluster * kBoxBytes];
  const Args args{cuda::matrix_map(matrix, kCluster * kRows, kRowBytes, kRows, kRowBytes,
                                   Swizzle::k128), nullptr};
  if (simt::options().lazy_copies) {
    CHECK(reports(ends_after_a_barrier_that_orders_nothing, "arrivals at another's barrier under way"));
    const std::string error = error_of(ends_before_a_copy, args);
    CHECK(error.find("block 1 of the cluster has ended") != std::string::npos ||
          error.find("copies under way") != std::string::npos);
  }
  CHECK(reports(arrives_before_the_start, "no barrier was initialised at 8"));
  CHECK(reports(arrives_nowhere, "no block 2 in a cluster of 2"));
  CHECK(reports(copies_nowhere, "needs a block to go to", args));
  CHECK(reports(one_block_does_not_come, "64 wait for a cluster barrier"));
  CHECK(error_of(arrives_nowhere, {}, 3) == "launch: a grid of 3 blocks is not whole clusters of 2");
}

}  // namespace

int main() {
  testing::for_each_schedule(a_copy_goes_to_all_blocks);
  testing::for_each_schedule(reports_name_the_problem);
  return tfq::testing::finish("test_shim_cluster");
}

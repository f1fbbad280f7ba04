// The shim's Hopper part: barriers, bulk copies, products of a warpgroup, reports.
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/ptx_sm90.cuh"
#include "launch_checks.h"

namespace {

using namespace tfq;
using cuda::Swizzle;

constexpr int kRows = 61, kRowBytes = 144, kColumns = 128;  // of the operands: ragged on purpose

struct Args {
  cuda::TensorMap a, b;
  int32_t* out;
  Swizzle swizzle;
};

constexpr uint32_t kBarrier = 0, kSecondBarrier = 8, kA = 1024, kB = kA + 64 * 128;
constexpr uint32_t kSharedBytes = kB + kColumns * 128;

std::string error_of(void (*kernel)(Args), Args args = {}, uint32_t threads = 128) {
  return testing::launch_error(kernel, {"probe", {1, 1, 1}, threads, kSharedBytes, nullptr}, args);
}

bool reports(void (*kernel)(Args), const char* text, Args args = {}) {
  return testing::contains(error_of(kernel, args), text);
}

TFQ_DEVICE void start(const Args& args) {
  if (simt::thread_index() == 0) {
    ptx::init_barrier(kBarrier, 1);
    ptx::publish_barriers();
    const auto row = static_cast<uint32_t>(args.swizzle);
    ptx::arrive_expecting(kBarrier, (64 + kColumns) * row);
    ptx::load_box(kA, args.a, kBarrier, 0, 0);
    ptx::load_box(kB, args.b, kBarrier, 0, 0);
  }
  simt::sync_block();
}

TFQ_DEVICE void multiply(const Args& args, ptx::Sums<128>& sums, uint32_t depth) {
  for (uint32_t k = 0; k < depth; k += 32)
    ptx::multiply_add_u8s8(sums, ptx::matrix_descriptor(kA + k, args.swizzle),
                           ptx::matrix_descriptor(kB + k, args.swizzle), k > 0);
  ptx::commit_products();
}

TFQ_DEVICE void store(const Args& args, const ptx::Sums<128>& sums) {
  const int thread = simt::thread_index();
  for (int j = 0; j < kColumns / 8; ++j)
    for (int r = 0; r < 4; ++r) {
      const int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (r / 2);
      args.out[row * kColumns + 8 * j + 2 * (thread % 4) + r % 2] = sums[j][r];
    }
}

TFQ_KERNEL product(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  ptx::fence_products();
  multiply(args, sums, static_cast<uint32_t>(args.swizzle));
  ptx::wait_products<0>();
  store(args, sums);
}

TFQ_KERNEL product_read_early(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  ptx::fence_products();
  multiply(args, sums, static_cast<uint32_t>(args.swizzle));
  store(args, sums);
  ptx::wait_products<0>();
}

TFQ_KERNEL product_before_the_copies(Args args) {
  start(args);
  ptx::Sums<128> sums;
  ptx::fence_products();
  multiply(args, sums, static_cast<uint32_t>(args.swizzle));
  ptx::wait_products<0>();
  store(args, sums);
  ptx::wait_barrier(kBarrier, 0);
}

struct Operands {
  std::vector<uint8_t> a = std::vector<uint8_t>(kRows * kRowBytes + 16);
  std::vector<int8_t> b = std::vector<int8_t>(kColumns * kRowBytes + 16);
  std::vector<int32_t> out = std::vector<int32_t>(64 * kColumns, -1);
  uint8_t* a_data = aligned(a.data());
  int8_t* b_data = aligned(b.data());

  template <typename T>
  static T* aligned(T* p) {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + 15) / 16 * 16);
  }
  Operands() {
    for (int i = 0; i < kRows * kRowBytes; ++i) a_data[i] = static_cast<uint8_t>(i * 37 + i / 97);
    for (int i = 0; i < kColumns * kRowBytes; ++i)
      b_data[i] = static_cast<int8_t>(i * 59 + i / 101);
  }
  Args args(Swizzle swizzle) {
    const auto box = static_cast<int>(swizzle);
    return {cuda::matrix_map(a_data, kRows, kRowBytes, 64, box, swizzle),
            cuda::matrix_map(b_data, kColumns, kRowBytes, kColumns, box, swizzle), out.data(),
            swizzle};
  }
  bool right(int depth) const {
    for (int row = 0; row < 64; ++row)
      for (int column = 0; column < kColumns; ++column) {
        int32_t sum = 0;
        for (int k = 0; row < kRows && k < depth; ++k)
          sum += a_data[row * kRowBytes + k] * b_data[column * kRowBytes + k];
        if (out[static_cast<size_t>(row * kColumns + column)] != sum) return false;
      }
    return true;
  }
};

void products_are_right() {
  for (const Swizzle swizzle : {Swizzle::k128, Swizzle::k64, Swizzle::k32}) {
    Operands operands;
    CHECK(error_of(product, operands.args(swizzle)).empty());
    CHECK(operands.right(static_cast<int>(swizzle)));
  }
}

void what_is_not_waited_for_is_not_there() {
  const bool lazy = simt::options().lazy_copies;
  Operands operands;
  CHECK(error_of(product_read_early, operands.args(Swizzle::k128)).empty());
  CHECK(operands.right(128) == !lazy);
  CHECK(error_of(product_before_the_copies, operands.args(Swizzle::k128)).empty());
  CHECK(operands.right(128) == !lazy);
}

// A ring of one word: 96 consumers, one producer, the phases of both barriers alternate.
TFQ_KERNEL ring(Args args) {
  constexpr int kRounds = 5;
  auto* word = simt::shared_at<int32_t>(kA);
  if (simt::thread_index() == 0) {
    ptx::init_barrier(kBarrier, 1);
    ptx::init_barrier(kSecondBarrier, 96);
  }
  simt::sync_block();
  uint32_t parity = 0;
  int32_t sum = 0;
  for (int round = 0; round < kRounds; ++round, parity ^= 1) {
    if (simt::thread_index() == 0) {
      ptx::wait_barrier(kSecondBarrier, parity ^ 1);
      *word = round * round;
      ptx::arrive(kBarrier);
    } else if (simt::thread_index() >= 32) {
      ptx::wait_barrier(kBarrier, parity);
      sum = 10 * sum + *word;
      ptx::arrive(kSecondBarrier);
    }
  }
  args.out[simt::thread_index()] = sum;
}

void phases_alternate() {
  std::vector<int32_t> out(128);
  CHECK(error_of(ring, {{}, {}, out.data(), Swizzle::k128}).empty());
  for (int i = 32; i < 128; ++i) CHECK(out[static_cast<size_t>(i)] == 1506);
}

TFQ_KERNEL groups_of_threads(Args args) {
  const int thread = simt::thread_index();
  *simt::shared_at<int32_t>(kA + static_cast<uint32_t>(4 * thread)) = thread;
  if (thread < 64) {
    ptx::sync_threads<64>(1);
  } else {
    ptx::sync_threads<64>(2);
  }
  args.out[thread] = *simt::shared_at<int32_t>(kA + static_cast<uint32_t>(4 * (thread ^ 63)));
}

void named_barriers_are_of_their_threads() {
  std::vector<int32_t> out(128);
  CHECK(error_of(groups_of_threads, {{}, {}, out.data(), Swizzle::k128}).empty());
  for (int i = 0; i < 128; ++i) CHECK(out[static_cast<size_t>(i)] == (i ^ 63));
}

TFQ_KERNEL waits_for_nobody(Args) {
  if (simt::thread_index() == 0) ptx::init_barrier(kBarrier, 2);
  simt::sync_block();
  if (simt::thread_index() == 0) ptx::arrive(kBarrier);
  ptx::wait_barrier(kBarrier, 0);
}
TFQ_KERNEL expects_too_much(Args args) {
  if (simt::thread_index() == 0) {
    ptx::init_barrier(kBarrier, 1);
    ptx::publish_barriers();
    ptx::arrive_expecting(kBarrier, 64 * 128 + 16);
    ptx::load_box(kA, args.a, kBarrier, 0, 0);
  }
  simt::sync_block();
  ptx::wait_barrier(kBarrier, 0);
}
TFQ_KERNEL overwrites_its_barrier(Args) {
  if (simt::thread_index() != 0) return;
  ptx::init_barrier(kBarrier, 1);
  *simt::shared_at<int32_t>(kBarrier) = 0;
  ptx::arrive(kBarrier);
}
TFQ_KERNEL uses_no_barrier(Args) { ptx::arrive(kBarrier); }
TFQ_KERNEL arrives_too_often(Args) {
  if (simt::thread_index() != 0) return;
  ptx::init_barrier(kBarrier, 1);
  ptx::arrive_expecting(kBarrier, 16);
  ptx::arrive(kBarrier);
}
TFQ_KERNEL leaves_a_copy(Args args) { start(args); }
TFQ_KERNEL leaves_a_product(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  ptx::fence_products();
  multiply(args, sums, 32);
}
TFQ_KERNEL forgets_the_fence(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  multiply(args, sums, 32);
}
TFQ_KERNEL writes_early(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  ptx::fence_products();
  multiply(args, sums, 32);
  sums[3][1] = 7;
  ptx::wait_products<0>();
}
TFQ_KERNEL lanes_differ(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  ptx::fence_products();
  const uint32_t k = simt::lane_index() == 5 ? 32 : 0;
  ptx::multiply_add_u8s8(sums, ptx::matrix_descriptor(kA + k, args.swizzle),
                         ptx::matrix_descriptor(kB, args.swizzle), false);
}
TFQ_KERNEL begins_within_a_group(Args args) {
  start(args);
  ptx::wait_barrier(kBarrier, 0);
  ptx::Sums<128> sums;
  ptx::fence_products();
  ptx::multiply_add_u8s8(sums, ptx::matrix_descriptor(kA + 128, args.swizzle),
                         ptx::matrix_descriptor(kB, args.swizzle), false);
  ptx::commit_products();
  ptx::wait_products<0>();
}
TFQ_KERNEL copies_to_an_odd_place(Args args) {
  if (simt::thread_index() != 0) return;
  ptx::init_barrier(kBarrier, 1);
  ptx::publish_barriers();
  ptx::load_box(kA + 64, args.a, kBarrier, 0, 0);
}
TFQ_KERNEL publishes_nothing(Args args) {
  if (simt::thread_index() != 0) return;
  ptx::init_barrier(kBarrier, 1);
  ptx::load_box(kA, args.a, kBarrier, 0, 0);
}
// The fence is the initialising thread's own.
TFQ_KERNEL publishes_what_another_initialised(Args args) {
  if (simt::thread_index() == 0) ptx::init_barrier(kBarrier, 1);
  simt::sync_block();
  if (simt::thread_index() != 1) return;
  ptx::publish_barriers();
  ptx::load_box(kA, args.a, kBarrier, 0, 0);
}

void reports_name_the_problem() {
  Operands operands;
  const Args args = operands.args(Swizzle::k128);
  CHECK(reports(waits_for_nobody, "128 wait for an mbarrier"));
  CHECK(reports(expects_too_much, "128 wait for an mbarrier", args));
  CHECK(reports(overwrites_its_barrier, "the barrier at 0 was overwritten"));
  CHECK(reports(uses_no_barrier, "no barrier was initialised at 0"));
  CHECK(reports(arrives_too_often, "more threads arrived"));
  CHECK(reports(forgets_the_fence, "without wgmma.fence", args));
  CHECK(reports(lanes_differ, "lanes of a warp differ", args));
  CHECK(reports(begins_within_a_group, "not a multiple of eight", args));
  CHECK(reports(copies_to_an_odd_place, "multiple of 128", args));
  CHECK(reports(publishes_nothing, "before its initialisation was published", args));
  CHECK(reports(publishes_what_another_initialised, "before its initialisation was published", args));
  if (!simt::options().lazy_copies) return;
  CHECK(reports(leaves_a_copy, "ended with bulk copies under way", args));
  CHECK(reports(leaves_a_product, "ended with products under way", args));
  CHECK(reports(writes_early, "sums were written while a product was under way", args));
}

void maps_of_small_images_lose_a_bit_of_old_drivers() {
  constexpr int kLastDriver = 13010;
  constexpr int64_t kSmall = 131071;
  const auto words = [](int driver, int64_t bytes) {
    cuda::TensorMap map;
    for (uint64_t& word : map.words) word = ~uint64_t{0};
    map = cuda::without_small_image_bug(map, driver, bytes);
    for (int i = 0; i < 16; ++i) CHECK(i == 1 || map.words[i] == ~uint64_t{0});
    return map.words[1];
  };
  CHECK(words(kLastDriver, kSmall) == 0xffffffffffdfffff);
  CHECK(words(12000, 16) == 0xffffffffffdfffff);
  CHECK(words(kLastDriver + 1, kSmall) == ~uint64_t{0});
  CHECK(words(kLastDriver, kSmall + 1) == ~uint64_t{0});
}

}  // namespace

int main() {
  maps_of_small_images_lose_a_bit_of_old_drivers();
  testing::for_each_schedule(products_are_right);
  testing::for_each_schedule(what_is_not_waited_for_is_not_there);
  testing::for_each_schedule(phases_alternate);
  testing::for_each_schedule(named_barriers_are_of_their_threads);
  testing::for_each_schedule(reports_name_the_problem);
  return tfq::testing::finish("test_shim_sm90");
}

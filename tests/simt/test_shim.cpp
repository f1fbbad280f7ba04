// The shim itself: fragment maps, barriers, copies, reports, conversions.
#include <array>
#include <cstdio>
#include <fstream>
#include <string>

#include "check.h"
#include "cuda/ptx_sm90.cuh"
#include "launch_checks.h"

namespace {

using namespace tfq;

void fragments_match_the_oracle(const char* path) {
  std::ifstream file(path);
  std::string instruction, operand;
  int lane, reg, byte, lines = 0;
  int64_t row, column;
  while (file >> instruction >> operand >> lane >> reg >> byte >> row >> column) {
    simt::Coordinate at{};
    if (instruction == "ldmatrix") at = simt::ldmatrix_x4(lane, reg, byte);
    if (operand == "a") at = simt::mma_a(lane, reg, byte);
    if (operand == "b") at = simt::mma_b(lane, reg, byte);
    if (operand == "c")
      at = instruction == "mma" ? simt::mma_c(lane, reg) : simt::wgmma_c(lane, reg);
    if (instruction == "swizzle") {
      const int row_bytes = std::stoi(operand);
      at.column = static_cast<int>(
          simt::swizzled(static_cast<uint32_t>(lane * row_bytes + 16 * reg), row_bytes));
    }
    if (instruction == "descriptor") {
      const auto swizzle = static_cast<cuda::Swizzle>(std::stoi(operand));
      CHECK(ptx::descriptor_of(static_cast<uint32_t>(lane), swizzle) ==
            (static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(column)));
      ++lines;
      continue;
    }
    CHECK(at.row == row && at.column == column);
    ++lines;
  }
  CHECK(lines == 512 + 256 + 128 + 512 + 2048 + (64 + 32 + 16) + 3 * 4);
}

struct Args {
  int* out;
  const int* in;
};

std::string error_of(void (*kernel)(Args), uint32_t threads, Args args) {
  return testing::launch_error(kernel, {"probe", {1, 1, 1}, threads, 256, nullptr}, args);
}

TFQ_KERNEL neighbour(Args args) {
  *simt::shared_at<int>(static_cast<uint32_t>(4 * simt::thread_index())) = simt::thread_index();
  if (!simt::fault(1)) simt::sync_block();
  args.out[simt::thread_index()] =
      *simt::shared_at<int>(static_cast<uint32_t>(4 * (63 - simt::thread_index())));
}

void barrier_is_needed_and_seen() {
  int out[64];
  for (const auto order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kShuffled,
                           simt::Order::kGreedy}) {
    simt::options() = {order, false, 3, 0};
    CHECK(error_of(neighbour, 64, {out, nullptr}).empty());
    for (int i = 0; i < 64; ++i) CHECK(out[i] == 63 - i);
    simt::options().fault = 1;
    CHECK(error_of(neighbour, 64, {out, nullptr}).empty());
    bool wrong = false;
    for (int i = 0; i < 64; ++i) wrong |= out[i] != 63 - i;
    CHECK(wrong);
  }
  simt::options() = {};
}

TFQ_KERNEL returns_early(Args) {
  if (simt::thread_index() >= 40) return;
  simt::sync_block();
}

TFQ_KERNEL diverges(Args) {
  if (simt::lane_index() < 3) {
    simt::sync_warp();
  } else {
    ptx::shuffle_xor(1, 1);
  }
}

TFQ_KERNEL overruns(Args) { *simt::shared_at<int>(256) = 1; }

void reports_name_the_problem() {
  CHECK(error_of(returns_early, 64, {}) ==
        "probe, block (0, 0, 0): stuck: of 64 threads, 40 wait at a block barrier, 0 at a warp "
        "instruction and 24 have returned");
  CHECK(error_of(diverges, 32, {}).find("a warp diverged") != std::string::npos);
  CHECK(error_of(overruns, 32, {}).find("shared memory: bytes 256 to 260 of 256") !=
        std::string::npos);
}

TFQ_KERNEL copies(Args args) {
  ptx::copy_async(0, args.in, true);
  ptx::commit_copies();
  ptx::copy_async(16, args.in, false);
  ptx::commit_copies();
  ptx::wait_copies<1>();
  args.out[0] = *simt::shared_at<int>(0);
  args.out[1] = *simt::shared_at<int>(16);
  ptx::wait_copies<0>();
  args.out[2] = *simt::shared_at<int>(16);
}

void copies_are_eager_or_lazy() {
  alignas(16) const int in[4] = {42, 0, 0, 0};
  int out[3];
  for (const bool lazy : {false, true}) {
    simt::options().lazy_copies = lazy;
    CHECK(error_of(copies, 32, {out, in}).empty());
    CHECK(out[0] == 42 && out[2] == 0);
    CHECK((out[1] == 0) == !lazy);
  }
  simt::options() = {};
}

// What the card does and quant.h says: round to even, saturate, NaN.
void conversions() {
  CHECK(ptx::round_to_int(2.5f) == 2 && ptx::round_to_int(-3.5f) == -4);
  CHECK(ptx::round_to_int(NAN) == 0 && ptx::round_to_int(3e9f) == 2147483647);
  CHECK(ptx::pack_u8(-5, 300, 7, 255) == 0xff07ff00u);
  CHECK(ptx::pack_low_bytes(0x101u, 0xff02u, 0x3u, 0xabcdef04u) == 0x04030201u);
  CHECK(ptx::max_number(NAN, -2.0f) == -2.0f && ptx::max_number(1.0f, 3.0f) == 3.0f);
  CHECK(ptx::pack_bf16(1.0f, -2.0f) == 0xc0003f80u && ptx::pack_bf16(NAN, 0.0f) == 0x7fffu);
  CHECK(ptx::pack_fp16(1.0f, -2.0f) == 0xc0003c00u && ptx::pack_fp16(65520.0f, 0.0f) == 0x7c00u);
  for (uint32_t half = 0; half < 0x10000u; ++half) {
    const float value = fp16_to_float(static_cast<uint16_t>(half));
    if (value == value) CHECK(float_to_fp16(value) == half);
  }
  CHECK(float_to_fp16(1.0f + 0.00048828125f) == 0x3c00);  // halfway: to even
  CHECK(float_to_fp16(5.960464477539063e-8f * 1.5f) == 2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: test_shim fragments.tsv\n"), 2;
  fragments_match_the_oracle(argv[1]);
  barrier_is_needed_and_seen();
  reports_name_the_problem();
  copies_are_eager_or_lazy();
  conversions();
  return tfq::testing::finish("test_shim");
}

// The instructions of sm_90a the kernels use, one function each; sections are those of the PTX ISA
// manual, version 9.0. The host bodies are in tests/simt/ptx_sm90_host.h. Barriers and tiles are
// addressed by byte offsets into the block's shared memory.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/tensor_map.h"

namespace tfq::ptx {

using cuda::Swizzle;
using cuda::TensorMap;

// What wgmma reads (9.7.15.5.1.2.2): a matrix of rows along k, `swizzle` bytes each, eight of them
// one after another and `offset` a multiple of eight such rows, or a step of 32 bytes within a row.
// 14 bits each, in units of 16 bytes: address, leading offset (not read here), distance of groups of
// eight rows.
constexpr uint64_t kAddressMask = 0x3ffff;
constexpr int kGroupRows = 8;
TFQ_DEVICE constexpr uint64_t descriptor_of(uint32_t address, Swizzle swizzle) {
  const auto row = static_cast<uint64_t>(swizzle);
  const uint64_t mode = row == 128 ? 1 : row == 64 ? 2 : 3;
  return (address & kAddressMask) >> 4 | uint64_t{1} << 16 | (kGroupRows * row >> 4) << 32 | mode << 62;
}

// Where the first tap of an output is.
struct FirstTap {
  int image, y, x;
};

// Accumulators of a warpgroup's product (64, N): [j] are columns 8 * j of the thread's two rows.
template <int N>
using Sums = int32_t[N / 8][4];

}  // namespace tfq::ptx

#ifdef TFQ_SIMT_HOST

#include "ptx_sm90_host.h"

#else

namespace tfq::ptx {

// Whether this pass compiles for sm_90a: kernels are empty elsewhere.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// mbarrier (9.7.13.15): a phase ends when `arrivals` threads have arrived and as many bytes have come
// as were expected. The first phase has parity 0.
TFQ_DEVICE void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Makes initialised barriers known to the copy engine; before a barrier of the block.
TFQ_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
TFQ_DEVICE void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// The same at the barrier at this offset of block `rank` of the cluster. Without .release.cluster, for
// which the assembler puts a fence of the whole device into the main loop: what the other block orders
// by it are copies, not loads and stores.
TFQ_DEVICE void arrive_at(int rank, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
TFQ_DEVICE void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Waits for the end of the phase of this parity.
TFQ_DEVICE void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The barrier of all threads of the cluster (9.7.13.4), which orders no loads and stores, and no arrivals at
// other blocks' barriers, but the initialisation of published barriers. Warps arrive whole.
TFQ_DEVICE void sync_cluster() {
  simt::sync_warp();
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// cp.async.bulk.tensor (9.7.9.27.1.2): the box of `map` at (row, column), in bytes, to `target`, with
// zeros outside the matrix. Its bytes, all of the box, come to `barrier`.
TFQ_DEVICE void load_box(uint32_t target, const TensorMap& map, uint32_t barrier, int row,
                         int column) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4}], [%2];" ::"r"(shared_address(target)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}
// The same to each block of the cluster in `mask`, bit by rank: to this target of its shared memory, and
// the bytes to its barrier at this offset.
TFQ_DEVICE void load_box_multicast(uint32_t target, const TensorMap& map, uint32_t barrier, int row,
                                   int column, uint32_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(target)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "r"(column), "r"(row),
      "h"(static_cast<uint16_t>(mask))
      : "memory");
}
// load_box of an image_map: channels from `channel` on of tap (tap_y, tap_x) of the outputs from the one
// with this first tap on.
TFQ_DEVICE void load_taps(uint32_t target, const TensorMap& map, uint32_t barrier,
                          const FirstTap& first, int tap_y, int tap_x, int channel) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(target)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "r"(channel),
      "r"(first.x), "r"(first.y), "r"(first.image), "h"(static_cast<uint16_t>(tap_x)),
      "h"(static_cast<uint16_t>(tap_y))
      : "memory");
}
TFQ_DEVICE void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

TFQ_DEVICE uint64_t matrix_descriptor(uint32_t offset, Swizzle swizzle) {
  return descriptor_of(shared_address(offset), swizzle);
}

// wgmma (9.7.15): before the first product of a batch, after the last, and until at most GroupsLeft
// batches are under way. Sums of a product under way must not be touched.
TFQ_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TFQ_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int GroupsLeft>
TFQ_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GroupsLeft) : "memory");
}

// After the wait: nothing that reads the sums may be moved before it, for all the compiler sees of a product
// is that they were written where it was queued.
template <int Pieces>
TFQ_DEVICE void fence_sums(int32_t (&d)[Pieces][4]) {
#pragma unroll
  for (int j = 0; j < Pieces; ++j)
    asm volatile("" : "+r"(d[j][0]), "+r"(d[j][1]), "+r"(d[j][2]), "+r"(d[j][3])::"memory");
}

#define TFQ_SUMS2(j) "+r"(d[j][0]), "+r"(d[j][1]), "+r"(d[j][2]), "+r"(d[j][3]), \
                     "+r"(d[(j) + 1][0]), "+r"(d[(j) + 1][1]), "+r"(d[(j) + 1][2]), "+r"(d[(j) + 1][3])
#define TFQ_SUMS8(j) TFQ_SUMS2(j), TFQ_SUMS2(j + 2), TFQ_SUMS2(j + 4), TFQ_SUMS2(j + 6)
#define TFQ_NAMES8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define TFQ_NAMES64                                                                     \
  TFQ_NAMES8(0, 1, 2, 3, 4, 5, 6, 7) "," TFQ_NAMES8(8, 9, 10, 11, 12, 13, 14, 15) ","   \
  TFQ_NAMES8(16, 17, 18, 19, 20, 21, 22, 23) ","                                        \
  TFQ_NAMES8(24, 25, 26, 27, 28, 29, 30, 31) ","                                        \
  TFQ_NAMES8(32, 33, 34, 35, 36, 37, 38, 39) ","                                        \
  TFQ_NAMES8(40, 41, 42, 43, 44, 45, 46, 47) ","                                        \
  TFQ_NAMES8(48, 49, 50, 51, 52, 53, 54, 55) "," TFQ_NAMES8(56, 57, 58, 59, 60, 61, 62, 63)

// d (64, N) = (d if `accumulate`) + a (64, 32) u8 times the transpose of b (N, 32) s8.
TFQ_DEVICE void multiply_add_u8s8(Sums<128>& d, uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {" TFQ_NAMES64 "}, %64, %65, keep;\n}"
      : TFQ_SUMS8(0), TFQ_SUMS8(8)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}
TFQ_DEVICE void multiply_add_u8s8(Sums<160>& d, uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %82, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n160k32.s32.u8.s8 {" TFQ_NAMES64
      "," TFQ_NAMES8(64, 65, 66, 67, 68, 69, 70, 71) "," TFQ_NAMES8(72, 73, 74, 75, 76, 77, 78, 79)
      "}, %80, %81, keep;\n}"
      : TFQ_SUMS8(0), TFQ_SUMS8(8), TFQ_SUMS2(16), TFQ_SUMS2(18)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

#undef TFQ_SUMS2
#undef TFQ_SUMS8
#undef TFQ_NAMES8
#undef TFQ_NAMES64

// bar.sync (9.7.13.1) among `Threads` threads, whole warps; `id` in [1, 15], 0 is the block's.
template <int Threads>
TFQ_DEVICE void sync_threads(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}

// setmaxnreg (9.7.20.5), by all warps of a warpgroup.
template <int Registers>
TFQ_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
TFQ_DEVICE void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace tfq::ptx

#endif

// The instructions of csrc/cuda/ptx_sm90.cuh on a CPU. Meant to be included by it alone.
#pragma once

#include "async_host.h"
#include "tensor_map_host.h"

namespace tfq::ptx {

constexpr bool kHasWgmma = true;

inline void init_barrier(uint32_t barrier, int arrivals) { simt::init_barrier(barrier, arrivals); }
inline void publish_barriers() { simt::publish_barriers(); }
inline void arrive(uint32_t barrier) { simt::arrive(barrier, 0); }
inline void arrive_at(int rank, uint32_t barrier) { simt::arrive_at(rank, barrier); }
inline void arrive_expecting(uint32_t barrier, uint32_t bytes) { simt::arrive(barrier, bytes); }
inline void wait_barrier(uint32_t barrier, uint32_t parity) { simt::wait_barrier(barrier, parity); }

inline void sync_cluster() { simt::sync_cluster(); }

inline void load_box_multicast(uint32_t target, const TensorMap& map, uint32_t barrier, int row,
                               int column, uint32_t mask) {
  const auto fields = simt::fields_of<simt::MatrixMap>(map);
  simt::queue_bulk_copy(
      barrier, target, static_cast<uint32_t>(fields.box_rows * fields.box_bytes), mask,
      [=](int rank) { simt::copy_box(fields, rank, target, row, column); });
}
inline void load_box(uint32_t target, const TensorMap& map, uint32_t barrier, int row, int column) {
  load_box_multicast(target, map, barrier, row, column, 1u << simt::block_rank());
}
inline void load_taps(uint32_t target, const TensorMap& map, uint32_t barrier,
                      const FirstTap& first, int tap_y, int tap_x, int channel) {
  const auto fields = simt::fields_of<simt::ImageMap>(map);
  simt::queue_bulk_copy(barrier, target, static_cast<uint32_t>(fields.box_rows * fields.box_bytes),
                        1u << simt::block_rank(), [=](int rank) {
                          simt::copy_taps(fields, rank, target, first.image, first.y, first.x,
                                          tap_y, tap_x, channel);
                        });
}
inline void prefetch_map(const TensorMap&) {}

inline uint64_t matrix_descriptor(uint32_t offset, Swizzle swizzle) {
  return descriptor_of(offset, swizzle);
}

inline void fence_products() { simt::fence_products(); }
inline void commit_products() { simt::commit_products(); }

// The warp waits as one: none of it goes on before all of it has waited.
template <int GroupsLeft>
void wait_products() {
  simt::wait_products(GroupsLeft + (simt::fault(simt::kFaultWaitOneProductTooFew) ? 1 : 0));
  simt::sync_warp();
}

template <int Pieces>
void fence_sums(int32_t (&)[Pieces][4]) {}

template <int N>
void multiply_add(int32_t (&d)[N][4], uint64_t a, uint64_t b, bool accumulate) {
  simt::Product product{d, 8 * N, a, b, accumulate};
  simt::warp_collective("wgmma", &product, [](void* const* payloads) {
    const auto* lanes = reinterpret_cast<const simt::Product* const*>(payloads);
    for (int lane = 1; lane < kWarpSize; ++lane)
      if (lanes[lane]->a != lanes[0]->a || lanes[lane]->b != lanes[0]->b ||
          lanes[lane]->accumulate != lanes[0]->accumulate)
        simt::fail("wgmma: the lanes of a warp differ in descriptors or in `accumulate`");
  });
  simt::queue_product(product);
}
inline void multiply_add_u8s8(Sums<128>& d, uint64_t a, uint64_t b, bool accumulate) {
  multiply_add(d, a, b, accumulate);
}
inline void multiply_add_u8s8(Sums<160>& d, uint64_t a, uint64_t b, bool accumulate) {
  multiply_add(d, a, b, accumulate);
}

template <int Threads>
void sync_threads(int id) {
  simt::sync_threads(id, Threads);
}
template <int Registers>
void release_registers() {}
template <int Registers>
void claim_registers() {}

}  // namespace tfq::ptx

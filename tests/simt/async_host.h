// What Hopper does on its own while threads go on: mbarriers, bulk copies into shared memory and
// products of a warpgroup. All of it belongs to the cluster that runs; barriers and shared memory are of
// one of its blocks, by rank.
//
// With eager copies an operation happens when it is asked for. With lazy ones a bulk copy, and an arrival
// at another block's barrier, happens only when no thread can go on without it, a product only when it is
// waited for; until then what it will write is poisoned, and what it will read may still change.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace tfq::simt {

// Copies and other blocks may name a barrier once the thread that initialised it has published it.
void init_barrier(uint32_t barrier, int arrivals);
void publish_barriers();
void arrive(uint32_t barrier, uint32_t expected_bytes);
// At the barrier of a block of the cluster. No barrier of the cluster waits for it to get there.
void arrive_at(int rank, uint32_t barrier);
void wait_barrier(uint32_t barrier, uint32_t parity);

// copy(rank) writes shared memory [target, target + bytes) of that block, whose bytes then come to
// `barrier` there; for each block of `mask`, bit by rank, one after another in no order to rely on.
void queue_bulk_copy(uint32_t barrier, uint32_t target, uint32_t bytes, uint32_t mask,
                     std::function<void(int)> copy);

// Of the calling thread. sums (columns / 8, 4) are its part of a product (64, columns).
struct Product {
  int32_t (*sums)[4];
  int columns;
  uint64_t a, b;  // descriptors
  bool accumulate;
};
void fence_products();
void queue_product(const Product& product);
void commit_products();
void wait_products(int groups_left);

// For simt_host.cpp: a cluster begins; nobody can go on (performs one copy or arrival, or returns false); a
// cluster has ended (what is wrong with that, or "").
void begin_async(int blocks, int threads_of_block);
bool advance_async();
std::string end_async();

}  // namespace tfq::simt

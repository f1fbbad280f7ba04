#include "async_host.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "cuda/ptx_sm90.cuh"
#include "fragments.h"
#include "matrix_host.h"
#include "overlap_host.h"

namespace tfq::simt {
namespace {

constexpr uint32_t kBarrierBytes = 8;
constexpr uint64_t kBarrierMark = 0x72656972726162;  // what an initialised barrier holds here
constexpr int32_t kPoisonedSum = static_cast<int32_t>(0xA5A5A5A5u);
constexpr unsigned char kPoisonedByte = 0xA5;

struct Barrier {
  int arrivals, missing;
  int64_t bytes;  // expected and not come yet
  uint32_t parity;
  int thread;  // that initialised it, of the cluster
  bool published;
};

// Of bytes to a block, or of an arrival alone: then there is no copy.
struct Delivery {
  bool waited;  // the thread that asked for it, for the launches before
  int rank;
  uint32_t barrier, bytes;
  std::function<void(int)> copy;
};

// Sums some of whose products are under way: their value, while the thread's own are poisoned.
struct Flight {
  std::vector<int32_t> value;
  int products;
};

struct Thread {
  bool fenced = false;
  std::vector<Product> open;
  std::vector<std::vector<Product>> groups;  // committed, oldest first
  std::map<int32_t (*)[4], Flight> flights;
};

std::map<std::pair<int, uint32_t>, Barrier> barriers;  // by rank and offset
std::vector<Delivery> deliveries;                      // oldest first
std::vector<Thread> cluster_threads;
std::vector<int> multiplying;  // by rank: the warpgroup of the last product

int own_index() { return block_rank() * block_size() + thread_index(); }
Thread& self() { return cluster_threads[static_cast<size_t>(own_index())]; }

Barrier& barrier_at(int rank, uint32_t offset) {
  uint64_t mark;
  std::memcpy(&mark, shared_bytes_of(rank, offset, kBarrierBytes), kBarrierBytes);
  const auto found = barriers.find({rank, offset});
  if (found == barriers.end()) fail("no barrier was initialised at " + std::to_string(offset));
  if (mark != kBarrierMark) fail("the barrier at " + std::to_string(offset) + " was overwritten");
  return found->second;
}

void require_published(int rank, uint32_t offset) {
  if (!barrier_at(rank, offset).published)
    fail("the barrier at " + std::to_string(offset) + " is named by a copy or by another block before its "
         "initialisation was published");
}

void complete(int rank, uint32_t offset, Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  barrier.parity ^= 1;
  signal_event(rank, offset);
}

void count_arrival(int rank, uint32_t offset, uint32_t expected_bytes) {
  Barrier& barrier = barrier_at(rank, offset);
  barrier.bytes += expected_bytes;
  if (--barrier.missing < 0) fail("more threads arrived at a barrier than it was initialised for");
  complete(rank, offset, barrier);
}

void deliver(const Delivery& delivery) {
  if (!delivery.copy) {
    count_arrival(delivery.rank, delivery.barrier, 0);
    return;
  }
  Barrier& barrier = barrier_at(delivery.rank, delivery.barrier);
  const std::string error = enter_view(delivery.waited);
  if (!error.empty()) fail(error);
  delivery.copy(delivery.rank);
  barrier.bytes -= delivery.bytes;
  complete(delivery.rank, delivery.barrier, barrier);
}

// A matrix in shared memory as wgmma reads it (PTX ISA 9.7.15.5.1).
class Matrix {
 public:
  explicit Matrix(uint64_t descriptor)
      : address_(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        group_(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4) {
    const auto mode = static_cast<int>(descriptor >> 62);
    if (mode == 0) fail("wgmma: this matrix is not swizzled, which is not emulated");
    if (descriptor >> 49 & 7) fail("wgmma: base offsets are not emulated");
    row_ = mode == 1 ? 128 : mode == 2 ? 64 : 32;
    if (address_ % (8 * row_) >= row_)
      fail("wgmma: a matrix begins at a row that is not a multiple of eight");
  }

  // The 32 bytes of a row, each extended to 16 bits.
  template <typename Byte>
  void read(int row, int16_t* out) const {
    const uint32_t begin =
        address_ + static_cast<uint32_t>(row / 8) * group_ + static_cast<uint32_t>(row % 8) * row_;
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
      const unsigned char* bytes =
          shared_bytes(swizzled(begin + 16 * chunk, static_cast<int>(row_)), 16);
      for (int i = 0; i < 16; ++i)
        out[16 * chunk + static_cast<uint32_t>(i)] = static_cast<Byte>(bytes[i]);
    }
  }

 private:
  uint32_t address_, group_, row_;
};

// The thread's part of the product: two rows, a quarter of the columns.
void multiply(const Product& product, int32_t* sums) {
  constexpr int kDepth = 32, kMostColumns = 256;
  const Matrix a(product.a), b(product.b);
  const int thread = thread_index() % 128;
  int16_t a_rows[2][kDepth];
  int16_t b_rows[kMostColumns / 4][kDepth];
  int32_t c[2 * kMostColumns / 4];  // (2, columns)
  for (int half = 0; half < 2; ++half) a.read<uint8_t>(wgmma_c(thread, 2 * half).row, a_rows[half]);
  const int columns = product.columns / 4;
  for (int i = 0; i < columns; ++i) {
    const int reg = 4 * (i / 2) + i % 2;
    b.read<int8_t>(wgmma_c(thread, reg).column, b_rows[i]);
    for (int half = 0; half < 2; ++half)
      c[half * columns + i] = product.accumulate ? sums[reg + 2 * half] : 0;
  }
  multiply_add(c, &a_rows[0][0], &b_rows[0][0], 2, columns, kDepth);
  for (int i = 0; i < columns; ++i)
    for (int half = 0; half < 2; ++half)
      sums[4 * (i / 2) + i % 2 + 2 * half] = c[half * columns + i];
}

void finish(Thread& thread, const Product& product) {
  Flight& flight = thread.flights.at(product.sums);
  multiply(product, flight.value.data());
  if (--flight.products > 0) return;
  int32_t* sums = &product.sums[0][0];
  for (size_t i = 0; i < flight.value.size(); ++i)
    if (sums[i] != kPoisonedSum) fail("wgmma: sums were written while a product was under way");
  std::copy(flight.value.begin(), flight.value.end(), sums);
  thread.flights.erase(product.sums);
}

}  // namespace

void init_barrier(uint32_t offset, int arrivals) {
  if (offset % kBarrierBytes) fail("an mbarrier needs an address that is a multiple of 8");
  std::memcpy(shared_bytes(offset, kBarrierBytes), &kBarrierMark, kBarrierBytes);
  barriers[{block_rank(), offset}] = {arrivals, arrivals, 0, 0, own_index(), false};
}

void publish_barriers() {
  for (auto& [place, barrier] : barriers)
    if (barrier.thread == own_index()) barrier.published = true;
}

void arrive(uint32_t offset, uint32_t expected_bytes) {
  count_arrival(block_rank(), offset, expected_bytes);
}

void arrive_at(int rank, uint32_t offset) {
  require_published(rank, offset);
  const Delivery arrival{has_waited(), rank, offset, 0, nullptr};
  if (options().lazy_copies) {
    deliveries.push_back(arrival);
  } else {
    deliver(arrival);
  }
}

void wait_barrier(uint32_t offset, uint32_t parity) {
  while (barrier_at(block_rank(), offset).parity == parity) wait_event(offset, "an mbarrier");
}

void queue_bulk_copy(uint32_t barrier, uint32_t target, uint32_t bytes, uint32_t mask,
                     std::function<void(int)> copy) {
  constexpr uint32_t kAlignment = 128;
  if (target % kAlignment) fail("a bulk copy needs a target that is a multiple of 128");
  if (mask == 0) fail("a bulk copy needs a block to go to");
  for (int rank = 0; mask >> rank; ++rank) {
    if (!(mask >> rank & 1)) continue;
    require_published(rank, barrier);
    unsigned char* to = shared_bytes_of(rank, target, bytes);
    if (!options().lazy_copies) {
      deliver({has_waited(), rank, barrier, bytes, copy});
      continue;
    }
    std::memset(to, kPoisonedByte, bytes);
    deliveries.push_back({has_waited(), rank, barrier, bytes, copy});
  }
}

void fence_products() { self().fenced = true; }

void queue_product(const Product& product) {
  Thread& thread = self();
  if (!thread.fenced) fail("wgmma without wgmma.fence before it");
  int& last = multiplying[static_cast<size_t>(block_rank())];
  const int own = thread_index() / 128;
  if (last >= 0 && last != own) ++counters().product_turns;
  last = own;
  if (!options().lazy_copies) {
    multiply(product, &product.sums[0][0]);
    return;
  }
  int32_t* sums = &product.sums[0][0];
  const int count = product.columns / 2;
  const auto [flight, first] = thread.flights.try_emplace(product.sums);
  if (first) {
    flight->second.value.assign(sums, sums + count);
    std::fill(sums, sums + count, kPoisonedSum);
  }
  ++flight->second.products;
  thread.open.push_back(product);
}

void commit_products() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void wait_products(int groups_left) {
  Thread& thread = self();
  while (thread.groups.size() > static_cast<size_t>(groups_left)) {
    for (const Product& product : thread.groups.front()) finish(thread, product);
    thread.groups.erase(thread.groups.begin());
  }
  if (groups_left == 0) thread.fenced = false;
}

void begin_async(int blocks, int threads_of_block) {
  barriers.clear();
  deliveries.clear();
  multiplying.assign(static_cast<size_t>(blocks), -1);
  cluster_threads.assign(static_cast<size_t>(blocks * threads_of_block), Thread{});
}

bool advance_async() {
  if (deliveries.empty()) return false;
  const Delivery next = std::move(deliveries.front());
  deliveries.erase(deliveries.begin());
  deliver(next);
  return true;
}

std::string end_async() {
  for (const Delivery& delivery : deliveries)
    if (delivery.copy) return "the block ended with bulk copies under way";
  if (!deliveries.empty()) return "the block ended with arrivals at another's barrier under way";
  for (const Thread& thread : cluster_threads)
    if (!thread.flights.empty()) return "the block ended with products under way";
  return "";
}

}  // namespace tfq::simt

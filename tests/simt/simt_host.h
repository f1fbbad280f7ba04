// The execution model of csrc/cuda/simt.h on a CPU: one fibre per thread, clusters of blocks one after
// another.
//
// A kernel is run under several schedules, because one order hides most races: kGreedy lets a warp,
// and then its block, run ahead as far as it can, and asynchronous copies happen either at once
// (eager) or only when they are waited for (lazy), the destination being poisoned until then. Shared
// memory starts poisoned. A cluster in which nobody can go on is reported with what each thread waits
// for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace tfq::simt {

enum class Order { kForward, kReverse, kShuffled, kGreedy };

struct Options {
  Order order = Order::kForward;
  bool lazy_copies = false;
  uint64_t seed = 0;
  int fault = 0;  // simt.h, enum Fault
};
Options& options();

// Since the last reset_counters(). A phase is what one ldmatrix does in a cycle if nothing
// conflicts: eight rows of 16 bytes. A turn: products of a block that come from another warpgroup than
// those before.
struct Counters {
  uint64_t launches = 0, blocks = 0, switches = 0, product_turns = 0;
  uint64_t ldmatrix_phases = 0, ldmatrix_conflicts = 0;
  std::string last_kernel;
};
Counters& counters();

inline bool fault(int which) { return options().fault == which; }

int thread_index();
int lane_index();
int warp_index();
int block_size();
Dim3 block_index();
Dim3 grid_size();
void sync_block();
void sync_warp();
unsigned char* shared_bytes(uint32_t offset, size_t count);

// Of a block of the running cluster; an error if all of its threads have returned.
unsigned char* shared_bytes_of(int rank, uint32_t offset, size_t count);
int block_rank();  // of the calling thread, in its cluster
void sync_cluster();

template <typename T>
T* shared_at(uint32_t offset) {
  return reinterpret_cast<T*>(shared_bytes(offset, sizeof(T)));
}

// A meeting point of the 32 lanes of a warp: the last one to arrive calls execute(payload of each
// lane), then all go on. `name` must be the same for all.
void warp_collective(const char* name, void* payload, void (*execute)(void* const* payloads));

// A barrier of its own number among `count` threads of the block.
void sync_threads(int id, int count);

// Of launches that overlap (overlap_host.h): the calling thread waits for those before.
void wait_for_launches();
bool has_waited();

// Suspends the calling thread until signal_event of the same number for its block; `what` is for
// reports.
void wait_event(uint32_t event, const char* what);
void signal_event(int rank, uint32_t event);

// Ends the launch with this error.
[[noreturn]] void fail(const std::string& what);

// Asynchronous copies of the calling thread: 16 bytes each; a null source means zeros.
void queue_copy(uint32_t shared_offset, const void* source);
void commit_copies();
void wait_copies(int groups_left);

void run_grid(const LaunchConfig& config, const std::function<void()>& thread_body);

template <typename Args>
void launch(void (*kernel)(Args), const LaunchConfig& config, const Args& args) {
  run_grid(config, [kernel, args] { kernel(args); });
}

}  // namespace tfq::simt

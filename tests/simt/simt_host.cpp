#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>

#include "async_host.h"
#include "cuda/simt.h"
#include "overlap_host.h"

// void tfq_simt_switch(void** from, void* to): stores the stack pointer in *from and goes on where
// `to` was stored. swapcontext would also exchange signal masks, a system call each time, and most
// of the time of a run.
extern "C" void tfq_simt_switch(void** from, void* to);
asm(R"(
.pushsection .text
.hidden tfq_simt_switch
.globl tfq_simt_switch
.type tfq_simt_switch, @function
tfq_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tfq_simt_switch, .-tfq_simt_switch
.popsection
)");

namespace tfq::simt {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned char kPoison = 0xA5;
constexpr size_t kCopyBytes = 16;
constexpr uint32_t kClusterEvent = 2;  // of no mbarrier and no named barrier

enum class State { kReady, kBlockBarrier, kWarpMeeting, kDone, kEvent };

struct Copy {
  uint32_t shared_offset;
  const void* source;
};

struct Fibre {
  void* context;  // stack pointer while another thread runs
  std::unique_ptr<unsigned char[]> stack;
  State state = State::kReady;
  bool waited = false;  // for the launches before
  uint32_t event = 0;  // what kEvent waits for
  const char* event_name = "";
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
};

struct Warp {
  const char* meeting = nullptr;
  int arrived = 0;
  void* payloads[kWarpSize];
};

struct Block {
  Dim3 index;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  int at_barrier = 0, done = 0;
  std::map<int, int> at_named_barrier;
};

// The blocks that run together; fibres are numbered block by block.
struct Cluster {
  const LaunchConfig* config;
  const std::function<void()>* body;
  std::vector<Fibre>* fibres;
  std::vector<Block> blocks;
  void* scheduler;
  int current = -1;
  int at_barrier = 0, done = 0;
  std::string error;
  std::mt19937_64 random;
};

Cluster* cluster = nullptr;

int threads_of_block() { return static_cast<int>(cluster->config->threads); }
int threads() { return threads_of_block() * static_cast<int>(cluster->blocks.size()); }
Fibre& fibre(int i) { return (*cluster->fibres)[static_cast<size_t>(i)]; }
Fibre& self() { return fibre(cluster->current); }
Block& block_at(int rank) { return cluster->blocks[static_cast<size_t>(rank)]; }
Block& own_block() { return block_at(block_rank()); }
bool ready(int i) { return fibre(i).state == State::kReady; }

int first_ready(int begin, int count, int step) {
  int t = (begin % threads() + threads()) % threads();
  for (int i = 0; i < count; ++i) {
    if (ready(t)) return t;
    t += step;
    if (t < 0) t += threads();
    if (t >= threads()) t -= threads();
  }
  return -1;
}

int next_thread() {
  const int from = cluster->current;
  switch (options().order) {
    case Order::kForward:
      return first_ready(from + 1, threads(), 1);
    case Order::kReverse:
      return first_ready(from < 0 ? -1 : from - 1, threads(), -1);
    case Order::kShuffled:
      return first_ready(static_cast<int>(cluster->random() % static_cast<uint64_t>(threads())),
                         threads(), 1);
    case Order::kGreedy:
      break;
  }
  if (from >= 0) {
    const int begin = from / kWarpSize * kWarpSize;
    for (int t = begin; t < begin + kWarpSize; ++t)
      if (ready(t)) return t;
  }
  const auto random_warp = [](int threads) {
    const auto warps = static_cast<uint64_t>(threads / kWarpSize);
    return static_cast<int>(cluster->random() % warps) * kWarpSize;
  };
  if (from >= 0) {
    const int begin = from / threads_of_block() * threads_of_block();
    const int start = random_warp(threads_of_block());
    for (int i = 0; i < threads_of_block(); ++i) {
      const int t = begin + (start + i) % threads_of_block();
      if (ready(t)) return t;
    }
  }
  return first_ready(random_warp(threads()), threads(), 1);
}

std::string stuck_report() {
  int counts[5] = {};
  std::map<std::string, int> events;
  for (int i = 0; i < threads(); ++i) ++counts[static_cast<int>(fibre(i).state)];
  for (int i = 0; i < threads(); ++i)
    if (fibre(i).state == State::kEvent) ++events[fibre(i).event_name];
  std::ostringstream out;
  out << "stuck: of " << threads() << " threads, " << counts[1] << " wait at a block barrier, "
      << counts[2] << " at a warp instruction and " << counts[3] << " have returned";
  for (const auto& [name, count] : events) out << "; " << count << " wait for " << name;
  for (const Block& block : cluster->blocks)
    for (const Warp& warp : block.warps)
      if (warp.arrived) out << "; " << warp.arrived << " lanes of a warp in " << warp.meeting;
  return out.str();
}

// The thread that goes on sees memory as it must.
void enter_own_view() {
  const std::string error = enter_view(self().waited);
  if (!error.empty()) fail(error);
}

// Gives the processor to the next ready thread, or to the scheduler if there is none.
void yield() {
  Fibre& from = self();
  int next = next_thread();
  while (next < 0 && cluster->done < threads() && advance_async()) next = next_thread();
  if (next == cluster->current) {
    enter_own_view();
    return;
  }
  ++counters().switches;
  if (next < 0) {
    if (cluster->done < threads()) cluster->error = stuck_report();
    tfq_simt_switch(&from.context, cluster->scheduler);
    return;
  }
  cluster->current = next;
  tfq_simt_switch(&from.context, fibre(next).context);
  enter_own_view();
}

void fibre_main() {
  enter_own_view();
  (*cluster->body)();
  if (!self().open.empty() || !self().groups.empty()) {
    for (const auto& group : self().groups)
      if (!group.empty()) fail("a thread returned with asynchronous copies under way");
    if (!self().open.empty()) fail("a thread returned with copies it never committed");
  }
  self().state = State::kDone;
  ++own_block().done;
  ++cluster->done;
  yield();
}

void perform(const Copy& copy) {
  unsigned char* to = shared_bytes(copy.shared_offset, kCopyBytes);
  if (copy.source) {
    std::memcpy(to, copy.source, kCopyBytes);
  } else {
    std::memset(to, 0, kCopyBytes);
  }
}

// The stack of a thread that begins in fibre_main: tfq_simt_switch takes six registers and the
// address from it, and leaves it aligned as after a call.
void* initial_stack(unsigned char* stack) {
  constexpr size_t kSavedRegisters = 6, kAlignment = 16;
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);  // the frames of the thread before never ended
  auto top = reinterpret_cast<uintptr_t>(stack + kStackBytes) / kAlignment * kAlignment;
  auto* words = reinterpret_cast<void**>(top) - 2 - kSavedRegisters;
  std::fill(words, words + kSavedRegisters + 2, nullptr);
  words[kSavedRegisters] = reinterpret_cast<void*>(fibre_main);
  return words;
}

bool block_has_waited(int rank) {
  const int begin = rank * threads_of_block();
  for (int i = begin; i < begin + threads_of_block(); ++i)
    if (fibre(i).waited) return true;
  return false;
}

[[noreturn]] void throw_error() {
  const Dim3 index = block_at(std::max(cluster->current, 0) / threads_of_block()).index;
  std::ostringstream out;
  out << cluster->config->kernel << ", block (" << index.x << ", " << index.y << ", " << index.z
      << "): " << cluster->error;
  throw std::runtime_error(out.str());
}

// Runs the cluster's blocks, whose indices are set.
void run_cluster() {
  for (Block& block : cluster->blocks) {
    block.warps.assign(static_cast<size_t>(threads_of_block() / kWarpSize), Warp{});
    block.shared.assign(cluster->config->shared_bytes, kPoison);
    block.at_barrier = block.done = 0;
    block.at_named_barrier.clear();
  }
  cluster->at_barrier = cluster->done = 0;
  begin_async(static_cast<int>(cluster->blocks.size()), threads_of_block());
  cluster->current = -1;
  if (cluster->fibres->size() < static_cast<size_t>(threads()))
    cluster->fibres->resize(static_cast<size_t>(threads()));
  for (int i = 0; i < threads(); ++i) {
    Fibre& f = fibre(i);
    if (!f.stack) f.stack.reset(new unsigned char[kStackBytes]);
    f.state = State::kReady;
    f.waited = !cluster->config->overlaps;
    f.groups.clear();
    f.open.clear();
    f.context = initial_stack(f.stack.get());
  }
  counters().blocks += cluster->blocks.size();
  cluster->current = next_thread();
  tfq_simt_switch(&cluster->scheduler, fibre(cluster->current).context);
  if (cluster->error.empty()) cluster->error = end_async();
  for (int rank = 0; cluster->error.empty() && rank < static_cast<int>(cluster->blocks.size()); ++rank)
    if (!block_has_waited(rank))
      cluster->error = "a block ended without having waited for the launches before";
  if (!cluster->error.empty()) throw_error();
}

}  // namespace

Options& options() {
  static Options value;
  return value;
}

Counters& counters() {
  static Counters value;
  return value;
}

int thread_index() { return cluster->current % threads_of_block(); }
int lane_index() { return cluster->current % kWarpSize; }
int warp_index() { return thread_index() / kWarpSize; }
int block_size() { return threads_of_block(); }
Dim3 block_index() { return own_block().index; }
Dim3 grid_size() { return cluster->config->grid; }
int block_rank() { return cluster->current / threads_of_block(); }

void fail(const std::string& what) {
  cluster->error = "thread " + std::to_string(thread_index()) + ": " + what;
  tfq_simt_switch(&self().context, cluster->scheduler);
  std::abort();  // a failed cluster is never resumed
}

unsigned char* shared_bytes(uint32_t offset, size_t count) {
  return shared_bytes_of(block_rank(), offset, count);
}

unsigned char* shared_bytes_of(int rank, uint32_t offset, size_t count) {
  if (rank < 0 || rank >= static_cast<int>(cluster->blocks.size()))
    fail("no block " + std::to_string(rank) + " in a cluster of " +
         std::to_string(cluster->blocks.size()));
  Block& block = block_at(rank);
  if (block.done == threads_of_block())
    fail("block " + std::to_string(rank) + " of the cluster has ended, and its shared memory with it");
  if (offset + count > block.shared.size())
    fail("shared memory: bytes " + std::to_string(offset) + " to " +
         std::to_string(offset + count) + " of " + std::to_string(block.shared.size()));
  return block.shared.data() + offset;
}

void sync_block() {
  if (++own_block().at_barrier < threads_of_block()) {
    self().state = State::kBlockBarrier;
    yield();
    return;
  }
  own_block().at_barrier = 0;
  const int begin = block_rank() * threads_of_block();
  for (int i = begin; i < begin + threads_of_block(); ++i)
    if (fibre(i).state == State::kBlockBarrier) fibre(i).state = State::kReady;
  yield();
}

void sync_cluster() {
  if (++cluster->at_barrier < threads()) {
    wait_event(kClusterEvent, "a cluster barrier");
    return;
  }
  cluster->at_barrier = 0;
  for (int rank = 0; rank < static_cast<int>(cluster->blocks.size()); ++rank)
    signal_event(rank, kClusterEvent);
  yield();
}

void sync_threads(int id, int count) {
  // Not an address of an mbarrier, which are multiples of 8.
  const auto event = static_cast<uint32_t>(id) << 3 | 1;
  int& arrived = own_block().at_named_barrier[id];
  if (++arrived < count) {
    wait_event(event, "a named barrier");
    return;
  }
  arrived = 0;
  signal_event(block_rank(), event);
  yield();
}

void wait_event(uint32_t event, const char* what) {
  self().event = event;
  self().event_name = what;
  self().state = State::kEvent;
  yield();
}

void signal_event(int rank, uint32_t event) {
  const int begin = rank * threads_of_block();
  for (int i = begin; i < begin + threads_of_block(); ++i)
    if (fibre(i).state == State::kEvent && fibre(i).event == event) fibre(i).state = State::kReady;
}

void warp_collective(const char* name, void* payload, void (*execute)(void* const*)) {
  Warp& warp = own_block().warps[static_cast<size_t>(warp_index())];
  if (warp.arrived == 0) warp.meeting = name;
  if (warp.meeting != name && std::strcmp(warp.meeting, name) != 0)
    fail(std::string("a warp diverged: a lane in ") + name + ", others in " + warp.meeting);
  warp.payloads[lane_index()] = payload;
  if (++warp.arrived < kWarpSize) {
    self().state = State::kWarpMeeting;
    yield();
    return;
  }
  execute(warp.payloads);
  warp.arrived = 0;
  const int begin = cluster->current / kWarpSize * kWarpSize;
  for (int t = begin; t < begin + kWarpSize; ++t) fibre(t).state = State::kReady;
  yield();
}

void wait_for_launches() {
  self().waited = true;
  enter_own_view();
}

bool has_waited() { return self().waited; }

void sync_warp() {
  warp_collective("sync_warp", nullptr, [](void* const*) {});
}

void queue_copy(uint32_t shared_offset, const void* source) {
  if (shared_offset % kCopyBytes || reinterpret_cast<uintptr_t>(source) % kCopyBytes)
    fail("cp.async needs addresses that are multiples of 16");
  if (!options().lazy_copies) {
    perform({shared_offset, source});
    return;
  }
  std::memset(shared_bytes(shared_offset, kCopyBytes), kPoison, kCopyBytes);
  self().open.push_back({shared_offset, source});
}

void commit_copies() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void wait_copies(int groups_left) {
  auto& groups = self().groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

void run_grid(const LaunchConfig& config, const std::function<void()>& thread_body) {
  static std::vector<Fibre> fibres;
  if (config.threads == 0 || config.threads % kWarpSize)
    throw std::runtime_error("launch: threads must be whole warps");
  if (config.cluster == 0 || config.grid.x % config.cluster)
    throw std::runtime_error("launch: a grid of " + std::to_string(config.grid.x) +
                             " blocks is not whole clusters of " + std::to_string(config.cluster));
  ++counters().launches;
  counters().last_kernel = config.kernel;
  Cluster state;
  state.config = &config;
  state.body = &thread_body;
  state.fibres = &fibres;
  state.blocks.resize(config.cluster);
  state.random.seed(options().seed);
  cluster = &state;
  const Overlap overlap(config.overlaps);
  const uint64_t clusters = uint64_t{config.grid.x} / config.cluster * config.grid.y * config.grid.z;
  // A stride that is coprime to the count visits all clusters in an order of its own.
  uint64_t stride = 1, start = 0;
  if (options().order == Order::kReverse && clusters) stride = clusters - 1, start = clusters - 1;
  if (options().order == Order::kShuffled && clusters) {
    stride = 1 + state.random() % clusters;
    const auto gcd = [](uint64_t a, uint64_t b) {
      while (b) a %= b, std::swap(a, b);
      return a;
    };
    while (gcd(stride, clusters) != 1) ++stride;
    start = state.random() % clusters;
  }
  for (uint64_t i = 0; i < clusters; ++i) {
    const uint64_t first = (start + i * stride) % clusters * config.cluster;
    for (uint32_t rank = 0; rank < config.cluster; ++rank) {
      const uint64_t linear = first + rank;
      state.blocks[rank].index = {static_cast<uint32_t>(linear % config.grid.x),
                                  static_cast<uint32_t>(linear / config.grid.x % config.grid.y),
                                  static_cast<uint32_t>(linear / config.grid.x / config.grid.y)};
    }
    run_cluster();
  }
  cluster = nullptr;
}

}  // namespace tfq::simt

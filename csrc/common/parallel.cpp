#include "common/parallel.h"

#include <omp.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <exception>
#include <new>

namespace tfq {
namespace {

constexpr size_t kAlignment = 64;
// A transform that writes dozens of streams at once has more pages in flight than the first-level
// TLB has entries; scratch that large asks for huge ones.
constexpr size_t kHugePage = size_t{2} << 20;

struct Buffer {
  void* data = nullptr;
  size_t capacity = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

int num_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

void parallel_for(int64_t n, const std::function<void(int64_t)>& f) {
  if (n <= 1 || num_threads() == 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  std::exception_ptr first;  // OpenMP would terminate the process if one left the loop
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) {
    try {
      f(i);
    } catch (...) {
#pragma omp critical(tfq_parallel_for)
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

void* thread_scratch(int slot, size_t bytes) {
  static thread_local Buffer buffers[kScratchSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.capacity < bytes) {
    std::free(buffer.data);
    buffer.capacity = 0;
    const size_t alignment = bytes < kHugePage / 4 ? kAlignment : kHugePage;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    buffer.data = std::aligned_alloc(alignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
#ifdef __linux__
    if (alignment == kHugePage) madvise(buffer.data, rounded, MADV_HUGEPAGE);
#endif
    buffer.capacity = rounded;
  }
  return buffer.data;
}

}  // namespace tfq

#include "common/parallel.h"

#include <omp.h>

#include <cstdlib>
#include <new>

namespace tfq {
namespace {

constexpr size_t kAlignment = 64;

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
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) f(i);
}

void* thread_scratch(int slot, size_t bytes) {
  static thread_local Buffer buffers[kScratchSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.capacity < bytes) {
    std::free(buffer.data);
    buffer.capacity = 0;
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data = std::aligned_alloc(kAlignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.capacity = rounded;
  }
  return buffer.data;
}

}  // namespace tfq

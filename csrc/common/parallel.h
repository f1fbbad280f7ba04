// Threads: OpenMP sharing torch's runtime, so torch.set_num_threads limits these loops as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace tfq {

// Threads a parallel loop started here may use.
int num_threads();

// Calls f(i) for i in [0, n), spread over the threads. Of the exceptions that leave f the first is
// thrown again when the loop has ended, in which calls may be missing or not.
void parallel_for(int64_t n, const std::function<void(int64_t)>& f);

// Scratch memory of the calling thread, 64-byte aligned, at least `bytes` long, reused between
// calls. `slot` separates the buffers one thread holds at the same time. Throws std::bad_alloc.
constexpr int kScratchSlots = 4;
void* thread_scratch(int slot, size_t bytes);

}  // namespace tfq

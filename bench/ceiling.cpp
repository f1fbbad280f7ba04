// What this machine can do at most, for bench/profile.py: integer multiply-adds out of registers,
// and a stream from memory. Prints "<name> <value>" lines: GOP/s for avx512vnni and avx2, GB/s for
// memory, each the best of some repetitions, all threads together. Seconds are those in which a
// thread ran, so that other processes do not lower the ceiling.
//
//   c++ -O2 -pthread ceiling.cpp -o ceiling && ./ceiling THREADS
//
// The loops are assembly, so that no compiler moves an accumulator to memory: 12 independent ones
// hide the latency of 4 or 5 cycles on up to two ports.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr long kIterations = 20'000'000;
constexpr int kRepetitions = 5;
constexpr size_t kStreamBytes = size_t{256} << 20;

// 12 x 64 multiply-adds an iteration, two operations each.
double run_avx512vnni() {
  long i = kIterations;
  __asm__ volatile(
      "1:\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm4\n vpdpbusd %%zmm0, %%zmm1, %%zmm5\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm6\n vpdpbusd %%zmm0, %%zmm1, %%zmm7\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm8\n vpdpbusd %%zmm0, %%zmm1, %%zmm9\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm10\n vpdpbusd %%zmm0, %%zmm1, %%zmm11\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm12\n vpdpbusd %%zmm0, %%zmm1, %%zmm13\n"
      "vpdpbusd %%zmm0, %%zmm1, %%zmm14\n vpdpbusd %%zmm0, %%zmm1, %%zmm15\n"
      "dec %0\n jnz 1b\n vzeroupper"
      : "+r"(i)
      :
      : "xmm0", "xmm1", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15", "cc");
  return 12.0 * 64 * 2 * kIterations;
}

// 6 x 16 multiply-adds an iteration: VPMADDWD and the addition VPDPBUSD would have done.
double run_avx2() {
  long i = kIterations;
  __asm__ volatile(
      "1:\n"
      "vpmaddwd %%ymm0, %%ymm1, %%ymm4\n vpaddd %%ymm4, %%ymm10, %%ymm10\n"
      "vpmaddwd %%ymm0, %%ymm1, %%ymm5\n vpaddd %%ymm5, %%ymm11, %%ymm11\n"
      "vpmaddwd %%ymm0, %%ymm1, %%ymm6\n vpaddd %%ymm6, %%ymm12, %%ymm12\n"
      "vpmaddwd %%ymm0, %%ymm1, %%ymm7\n vpaddd %%ymm7, %%ymm13, %%ymm13\n"
      "vpmaddwd %%ymm0, %%ymm1, %%ymm8\n vpaddd %%ymm8, %%ymm14, %%ymm14\n"
      "vpmaddwd %%ymm0, %%ymm1, %%ymm9\n vpaddd %%ymm9, %%ymm15, %%ymm15\n"
      "dec %0\n jnz 1b\n vzeroupper"
      : "+r"(i)
      :
      : "xmm0", "xmm1", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15", "cc");
  return 6.0 * 16 * 2 * kIterations;
}

// Bytes read and written by copies between two buffers that no cache of a core holds.
double run_copy() {
  static thread_local std::vector<char> from(kStreamBytes, 1), to(kStreamBytes, 2);
  std::memcpy(to.data(), from.data(), kStreamBytes);
  __asm__ volatile("" : : "r"(to.data()) : "memory");
  return 2.0 * kStreamBytes;
}

double seconds_of_this_thread() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Best rate, in 1e9 units a second, of `threads` threads that run `body` at the same time.
double best_rate(int threads, const std::function<double()>& body) {
  std::vector<double> rates(static_cast<size_t>(threads), 0.0);
  std::vector<std::thread> team;
  for (double& rate : rates) {
    team.emplace_back([&rate, &body] {
      for (int repetition = 0; repetition < kRepetitions; ++repetition) {
        const double start = seconds_of_this_thread();
        const double units = body();
        const double seconds = seconds_of_this_thread() - start;
        if (units / seconds > rate) rate = units / seconds;
      }
    });
  }
  double sum = 0.0;
  for (std::thread& thread : team) thread.join();
  for (const double rate : rates) sum += rate;
  return sum / 1e9;
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
  if (__builtin_cpu_supports("avx512vnni"))
    std::printf("avx512vnni %.1f\n", best_rate(threads, run_avx512vnni));
  if (__builtin_cpu_supports("avx2")) std::printf("avx2 %.1f\n", best_rate(threads, run_avx2));
  std::printf("memory %.2f\n", best_rate(threads, run_copy));
}

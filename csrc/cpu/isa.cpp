#include "cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "common/check.h"

namespace tfq::cpu {
namespace {

constexpr const char* kNames[kLevelCount] = {"scalar", "avx2", "avx512vnni", "amx"};

// Intel SDM volume 1, 13.1 and 14.3: an extension may be used when CPUID reports it *and* the
// operating system saves its registers, which XCR0 tells.
uint64_t enabled_state_components() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out the tile registers on request, per process (Documentation/arch/x86/xstate.rst).
bool request_tile_permission() {
  constexpr long kArchRequestXcompPerm = 0x1023;
  constexpr long kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchRequestXcompPerm, kXfeatureTileData) == 0;
}

Level detect() {
  const uint64_t xcr0 = enabled_state_components();
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return Level::kScalar;
  const bool fma = (ecx & bit_FMA) && (ecx & bit_AVX);
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return Level::kScalar;

  constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;
  if (!fma || !(ebx & bit_AVX2) || (xcr0 & kAvxState) != kAvxState) return Level::kScalar;

  const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  constexpr uint32_t kAvx512Vnni = 1u << 11;
  if ((ebx & avx512) != avx512 || !(ecx & kAvx512Vnni) || (xcr0 & kAvx512State) != kAvx512State)
    return Level::kAvx2;

  constexpr uint32_t kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  if (!(edx & kAmxTile) || !(edx & kAmxInt8) || (xcr0 & kTileState) != kTileState ||
      !request_tile_permission())
    return Level::kAvx512Vnni;
  return Level::kAmx;
}

Level initial_level() {
  const Level detected = detected_level();
  const char* cap = std::getenv("TFQ_MAX_ISA");
  if (cap == nullptr || *cap == '\0') return detected;
  const Level level = level_from_name(cap);
  return level < detected ? level : detected;
}

std::atomic<int>& active() {
  static std::atomic<int> level{static_cast<int>(initial_level())};
  return level;
}

}  // namespace

const char* level_name(Level level) { return kNames[static_cast<int>(level)]; }

Level level_from_name(const std::string& name) {
  for (int i = 0; i < kLevelCount; ++i)
    if (name == kNames[i]) return static_cast<Level>(i);
  TFQ_CHECK(false, "TFQ_MAX_ISA: must be scalar, avx2, avx512vnni or amx, got '", name, "'");
  return Level::kScalar;
}

Level detected_level() {
  static const Level level = detect();
  return level;
}

Level active_level() { return static_cast<Level>(active().load(std::memory_order_relaxed)); }

void set_max_level(Level level) {
  const Level detected = detected_level();
  TFQ_CHECK(level <= detected, "set_max_isa: this machine runs levels up to ", level_name(detected),
            ", got ", level_name(level));
  active().store(static_cast<int>(level), std::memory_order_relaxed);
}

int64_t l2_bytes() {
  constexpr int64_t kFallback = 1 << 20;
  static const int64_t bytes = [] {
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return size > 0 ? static_cast<int64_t>(size) : kFallback;
  }();
  return bytes;
}

}  // namespace tfq::cpu

// What the CPU is: instruction-set levels of the kernels, cache size. isa.cpp is compiled without
// any instruction-set flag.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tfq::cpu {

// Ordered: a machine of one level can run every lower one.
enum class Level : int { kScalar = 0, kAvx2 = 1, kAvx512Vnni = 2, kAmx = 3 };
constexpr int kLevelCount = 4;

const char* level_name(Level level);

// Throws std::invalid_argument for an unknown name, listing the known ones.
Level level_from_name(const std::string& name);

// What this machine (CPU and operating system) can run.
Level detected_level();

// The level kernels are chosen for: detected, capped by TFQ_MAX_ISA (read once) or by
// set_max_level.
Level active_level();
void set_max_level(Level level);

// Size of the second-level cache of a core.
int64_t l2_bytes();

}  // namespace tfq::cpu

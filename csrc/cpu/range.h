// Indices from `begin` up to, not including, `end`.
#pragma once

#include <cstdint>

namespace tfq::cpu {

struct Range {
  int64_t begin, end;
};

}  // namespace tfq::cpu

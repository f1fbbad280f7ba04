// Rows of the table of temporal features.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

// out[i] = table[rows[i]]. Throws std::invalid_argument, before writing anything, when a row is not
// in the table.
void temporal_gather(const TemporalGatherArgs& args);

}  // namespace tfq::cpu

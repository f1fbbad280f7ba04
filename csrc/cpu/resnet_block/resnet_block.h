// A whole ResBlock in one call: the operations it consists of, with what passes between them in
// scratch memory.
#pragma once

#include "common/api.h"

namespace tfq::cpu {

void resnet_block(const ResnetBlockArgs& args);

}  // namespace tfq::cpu

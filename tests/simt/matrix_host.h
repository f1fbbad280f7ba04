// The arithmetic of the emulated matrix instructions.
#pragma once

#include <cstdint>

namespace tfq::simt {

// c (rows, columns) += a (rows, depth) times the transpose of b (columns, depth), all dense. Values
// of a and b are of 8 bits, signed or not; 16 hold either.
void multiply_add(int32_t* c, const int16_t* a, const int16_t* b, int rows, int columns, int depth);

}  // namespace tfq::simt

#include "matrix_host.h"

namespace tfq::simt {

void multiply_add(int32_t* c, const int16_t* a, const int16_t* b, int rows, int columns,
                  int depth) {
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      int32_t sum = 0;
      for (int k = 0; k < depth; ++k) sum += a[row * depth + k] * b[column * depth + k];
      c[row * columns + column] += sum;
    }
  }
}

}  // namespace tfq::simt

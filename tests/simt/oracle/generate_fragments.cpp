// Writes fragments.tsv: where each lane's register bytes lie, from the layouts in CuTe's traits
// (CUTLASS headers 4.2.0, pip package nvidia-cutlass; CUDA headers 13.0). Run by hand:
//
//   g++ -std=c++17 -I$CUTLASS/include -I$CUDA/include -I$CUDA/include/cccl generate_fragments.cpp -o g
//   ./g > fragments.tsv
//
// Lines: instruction operand lane register byte row column. A register of the accumulator is whole.
#include <cstdio>

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>

using Mma = cute::MMA_Traits<cute::SM80_16x8x32_S32U8S8S32_TN>;
using Load = cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>;

// CuTe's layouts map (lane, value) to a column-major index into the operand.
template <typename Layout>
void print_mma(const char* operand, Layout layout, int rows, int registers, int bytes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < registers; ++reg)
      for (int byte = 0; byte < bytes; ++byte) {
        const int index = static_cast<int>(layout(lane, reg * bytes + byte));
        std::printf("mma %s %d %d %d %d %d\n", operand, lane, reg, byte, index % rows, index / rows);
      }
}

int main() {
  print_mma("a", typename Mma::ALayout{}, 16, 4, 4);
  print_mma("b", typename Mma::BLayout{}, 8, 2, 4);
  print_mma("c", typename Mma::CLayout{}, 16, 4, 1);
  // Bits of the 32 rows of 128 bits, in the order of the lanes that address them (source) and in
  // the order of the registers that receive them (destination).
  typename Load::SrcLayout source;
  typename Load::DstLayout destination;
  static int row_of[32 * 128], bit_of[32 * 128];
  for (int lane = 0; lane < 32; ++lane)
    for (int bit = 0; bit < 128; ++bit) {
      const int index = static_cast<int>(source(lane, bit));
      row_of[index] = lane;
      bit_of[index] = bit;
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < 4; ++reg)
      for (int byte = 0; byte < 4; ++byte) {
        const int index = static_cast<int>(destination(lane, reg * 32 + byte * 8));
        std::printf("ldmatrix x4 %d %d %d %d %d\n", lane, reg, byte, row_of[index], bit_of[index] / 8);
      }
}

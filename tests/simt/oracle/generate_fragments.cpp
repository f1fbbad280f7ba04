// Writes fragments.tsv: where each lane's register bytes lie, from the layouts in CuTe's traits
// (CUTLASS headers 4.2.0, pip package nvidia-cutlass; CUDA headers 13.0). Run by hand:
//
//   g++ -std=c++17 -I$CUTLASS/include -I$CUDA/include -I$CUDA/include/cccl generate_fragments.cpp
//   -o g
//   ./g > fragments.tsv
//
// Lines: instruction operand lane register byte row column. A register of the accumulator is whole.
// Of the swizzles, a row and a 16-byte chunk of it, and the chunk's offset (as column); of the
// descriptors an address, and the upper and the lower word (as row and column).
#include <cstdio>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

using Mma = cute::MMA_Traits<cute::SM80_16x8x32_S32U8S8S32_TN>;
using Load = cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>;

// CuTe's layouts map (lane, value) to a column-major index into the operand.
template <typename Layout>
void print_mma(const char* operand, Layout layout, int rows, int registers, int bytes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int reg = 0; reg < registers; ++reg)
      for (int byte = 0; byte < bytes; ++byte) {
        const int index = static_cast<int>(layout(lane, reg * bytes + byte));
        std::printf("mma %s %d %d %d %d %d\n", operand, lane, reg, byte, index % rows,
                    index / rows);
      }
}

namespace gmma = cute::SM90::GMMA;

void print_wgmma() {
  constexpr int kColumns = 32;
  gmma::CLayout_64xN<kColumns> layout;
  for (int thread = 0; thread < 128; ++thread)
    for (int reg = 0; reg < kColumns / 2; ++reg) {
      const int index = static_cast<int>(layout(thread, reg));
      std::printf("wgmma c %d %d 0 %d %d\n", thread, reg, index % 64, index / 64);
    }
}

template <typename Atom>
void print_swizzle(int row_bytes, gmma::LayoutType type) {
  for (int row = 0; row < 8; ++row)
    for (int chunk = 0; chunk < row_bytes / 16; ++chunk)
      std::printf("swizzle %d %d %d 0 0 %d\n", row_bytes, row, chunk,
                  static_cast<int>(Atom{}(row, 16 * chunk)));
  for (const unsigned address : {0u, 1024u, 66560u + 32u, 230400u}) {
    cute::GmmaDescriptor descriptor;
    descriptor.desc_ = 0;
    descriptor.bitfield.layout_type_ = static_cast<uint8_t>(type);
    descriptor.bitfield.start_address_ = static_cast<uint16_t>(address >> 4);
    descriptor.bitfield.leading_byte_offset_ = 1;
    descriptor.bitfield.stride_byte_offset_ = static_cast<uint16_t>(8 * row_bytes >> 4);
    std::printf("descriptor %d %u 0 0 %u %u\n", row_bytes, address,
                static_cast<unsigned>(descriptor.desc_ >> 32),
                static_cast<unsigned>(descriptor.desc_));
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
        std::printf("ldmatrix x4 %d %d %d %d %d\n", lane, reg, byte, row_of[index],
                    bit_of[index] / 8);
      }
  print_wgmma();
  print_swizzle<gmma::Layout_K_SW128_Atom<unsigned char>>(128, gmma::LayoutType::B128);
  print_swizzle<gmma::Layout_K_SW64_Atom<unsigned char>>(64, gmma::LayoutType::B64);
  print_swizzle<gmma::Layout_K_SW32_Atom<unsigned char>>(32, gmma::LayoutType::B32);
}

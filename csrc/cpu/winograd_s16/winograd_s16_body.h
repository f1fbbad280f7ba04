// The transforms and the product, written once with the compiler's vectors of Isa::kBytes bytes.
// Isa::dot(acc, a, b) adds to each int32 lane the two int16 products of its lanes of a and b.
#pragma once

#include <cstring>
#include <utility>

#include "common/math.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/winograd_s16/winograd_s16.h"

namespace tfq::cpu {
namespace {

template <typename Isa>
struct WinogradBody {
  static constexpr int kBytes = Isa::kBytes;
  static constexpr int kLanes = kBytes / 4;                   // int32 lanes, pairs of int16
  static constexpr int kParts = int(kPanelColumns) / kLanes;  // vectors of a panel's columns
  static constexpr int kPatch = int(kWinogradPatch), kTile = int(kWinogradTile);
  typedef int16_t S16 __attribute__((vector_size(kBytes)));
  typedef uint16_t U16 __attribute__((vector_size(kBytes)));
  typedef int32_t S32 __attribute__((vector_size(kBytes)));
  typedef uint32_t U32 __attribute__((vector_size(kBytes)));

  template <typename Vector>
  static Vector load(const void* data) {
    Vector x;
    std::memcpy(&x, data, sizeof x);
    return x;
  }
  template <typename Vector>
  static void store(void* data, Vector x) {
    std::memcpy(data, &x, sizeof x);
  }

  // out[i] = row i of B^T times d.
  static void input_rows(const S16 (&d)[kPatch], S16 (&out)[kPatch]) {
    const S16 even = d[4] - d[2], odd = (d[3] - d[1]) << 1;
    out[0] = ((d[0] - d[2]) << 2) + even;
    out[1] = ((d[1] + d[2]) << 2) - (d[3] + d[4]);
    out[2] = ((d[2] - d[1]) << 2) + (d[3] - d[4]);
    out[3] = even + odd;
    out[4] = even - odd;
    out[5] = (d[5] - d[3]) - (odd << 1);
  }

  // out[i] = row i of G times g.
  static void weight_rows(const S16 (&g)[3], S16 (&out)[kPatch]) {
    const S16 outer = g[0] + g[2], far = g[0] + (g[2] << 2), middle = g[1] << 1;
    out[0] = g[0] * 6;
    out[1] = outer + g[1];
    out[2] = outer - g[1];
    out[3] = far + middle;
    out[4] = far - middle;
    out[5] = g[2] * 6;
  }

  // out[i] = numerator of row i of A^T times m, modulo 2^32.
  static void output_rows(const U32 (&m)[kPatch], U32 (&out)[kTile]) {
    const U32 near_sum = m[1] + m[2], near_difference = m[1] - m[2];
    const U32 far_sum = m[3] + m[4], far_difference = m[3] - m[4];
    out[0] = (near_sum << 2) + m[0] + far_sum;
    out[1] = (near_difference << 1) + far_difference;
    out[2] = near_sum + far_sum;
    out[3] = near_difference + (far_difference << 1) + m[5];
  }

  // `parity` 0: even bytes of each word, 1: odd ones.
  static S16 centred(const uint8_t* bytes, int parity) {
    const U16 words = load<U16>(bytes);
    return S16(parity == 0 ? words & uint16_t(0xff) : words >> 8) - int16_t(128);
  }

  static void transform_input(const WinogradInput& p) {
    for (int64_t part = 0; part < p.blocks * kWinogradBlock; part += kBytes) {
      const int64_t strip = part / kWinogradBlock * 2, pair = part % kWinogradBlock / kQuad;
      for (int parity = 0; parity < 2; ++parity) {
        S16 columns[kPatch][kPatch];  // [row of B^T][column of the patch]
        for (int j = 0; j < kPatch; ++j) {
          S16 d[kPatch], rows[kPatch];
#pragma GCC unroll 6
          for (int i = 0; i < kPatch; ++i) d[i] = centred(p.pixels[i * kPatch + j] + part, parity);
          input_rows(d, rows);
#pragma GCC unroll 6
          for (int i = 0; i < kPatch; ++i) columns[i][j] = rows[i];
        }
        int16_t* out = p.patches + (strip + parity) * p.strip_stride + pair * 2;
        for (int i = 0; i < kPatch; ++i) {
          S16 rows[kPatch];
          input_rows(columns[i], rows);
#pragma GCC unroll 6
          for (int j = 0; j < kPatch; ++j)
            store(out + (i * kPatch + j) * p.position_stride, rows[j]);
        }
      }
    }
  }

  static S16 tap(const int8_t* bytes, int parity) {
    const U16 words = load<U16>(bytes);
    return S16(parity == 0 ? words << 8 : words) >> 8;
  }

  static void transform_weight(const WinogradWeight& p) {
    // Nine streams of weights from beyond L2: a kilobyte ahead of each.
    constexpr int64_t kQuadsAhead = 16;
    constexpr int64_t kQuads = kWinogradBlock / kQuad;
    for (int64_t quad = 0; quad < p.blocks * kQuads; ++quad) {
      const int64_t pair = quad / kQuads * kWinogradPairs + quad % kQuads;
      for (int tap = 0; tap < 9; ++tap)
        __builtin_prefetch(p.panel + (quad + kQuadsAhead) * kQuadBytes + tap * p.tap_bytes);
      for (int part = 0; part < kParts; ++part) {
        const int8_t* source = p.panel + quad * kQuadBytes + part * kBytes;
        for (int parity = 0; parity < 2; ++parity) {
          S16 columns[kPatch][3];
#pragma GCC unroll 3
          for (int j = 0; j < 3; ++j) {
            S16 g[3], rows[kPatch];
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) g[i] = tap(source + (i * 3 + j) * p.tap_bytes, parity);
            weight_rows(g, rows);
#pragma GCC unroll 6
            for (int i = 0; i < kPatch; ++i) columns[i][j] = rows[i];
          }
          int16_t* out =
              p.taps + (pair + parity * kWinogradStrip) * kPanelColumns * 2 + part * kLanes * 2;
#pragma GCC unroll 6
          for (int i = 0; i < kPatch; ++i) {
            S16 rows[kPatch];
            weight_rows(columns[i], rows);
#pragma GCC unroll 6
            for (int j = 0; j < kPatch; ++j)
              store(out + (i * kPatch + j) * p.position_stride, rows[j]);
          }
        }
      }
    }
  }

  // The pragmas matter: without them GCC keeps the accumulators in memory.
  template <int Tiles, int kVectors>
  static void multiply_tiles(const WinogradProduct& p, int64_t tile, int64_t column) {
    S32 acc[Tiles][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < Tiles; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = S32{};
    }
    const int16_t* taps[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t c = column + v * kLanes;
      taps[v] = p.taps + c / kPanelColumns * p.panel_stride + c % kPanelColumns * 2;
    }
    for (int64_t strip = 0; strip < p.strips; ++strip) {
      const int16_t* patches = p.patches + strip * p.strip_stride + tile * kWinogradStrip * 2;
      const int64_t first = strip * kWinogradStrip;
      for (int64_t pair = 0; pair < kWinogradStrip; ++pair) {
        // The tiles that come next.
        __builtin_prefetch(patches + (Tiles + pair) * kWinogradStrip * 2);
        S16 b[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          b[v] = load<S16>(taps[v] + (first + pair) * kPanelColumns * 2);
#pragma GCC unroll 16
        for (int i = 0; i < Tiles; ++i) {
          int32_t two;
          std::memcpy(&two, patches + (i * kWinogradStrip + pair) * 2, sizeof two);
          const S16 a = S16(two - S32{});
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[i][v] = Isa::dot(acc[i][v], a, b[v]);
        }
      }
    }
    int32_t* out = p.sums + tile * p.panels * kPanelColumns + column;
#pragma GCC unroll 16
    for (int i = 0; i < Tiles; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        store(out + i * p.panels * kPanelColumns + v * kLanes, acc[i][v]);
    }
  }

  using MultiplyFn = void (*)(const WinogradProduct&, int64_t, int64_t);

  template <int Vectors, int... Tiles>
  static MultiplyFn multiply_fn(int64_t tiles, std::integer_sequence<int, Tiles...>) {
    static constexpr MultiplyFn by_tiles[] = {multiply_tiles<Tiles + 1, Vectors>...};
    return by_tiles[tiles - 1];
  }

  static void multiply(const WinogradProduct& p) {
    constexpr auto kTiles = std::make_integer_sequence<int, int(Isa::kTiles)>();
    constexpr int64_t kColumns = Isa::kVectors * kLanes;
    const int64_t columns = p.panels * kPanelColumns;
    const int64_t rounds = ceil_div(p.tiles, Isa::kTiles);
    for (int64_t round = 0, tile = 0; round < rounds; ++round) {
      const int64_t tiles = ceil_div(p.tiles - tile, rounds - round);
      int64_t column = 0;
      const MultiplyFn whole = multiply_fn<Isa::kVectors>(tiles, kTiles);
      for (; column + kColumns <= columns; column += kColumns) whole(p, tile, column);
      const MultiplyFn rest = multiply_fn<1>(tiles, kTiles);
      for (; column < columns; column += kLanes) rest(p, tile, column);
      tile += tiles;
    }
  }

  static void transform_output(const WinogradOutput& p) {
    // Inverse of 9 modulo 2^32.
    constexpr uint32_t kInverse9 = 954437177;
    constexpr int kShift[kTile] = {3, 2, 1, 1};  // powers of two in 24, 12, 6, 6
    for (int64_t column = 0; column < p.columns; column += kLanes) {
      U32 columns[kTile][kPatch];
#pragma GCC unroll 6
      for (int j = 0; j < kPatch; ++j) {
        U32 m[kPatch], rows[kTile];
#pragma GCC unroll 6
        for (int i = 0; i < kPatch; ++i)
          m[i] = load<U32>(p.sums + (i * kPatch + j) * p.position_stride + column);
        output_rows(m, rows);
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i) columns[i][j] = rows[i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i) {
        U32 rows[kTile];
        output_rows(columns[i], rows);
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) {
          int32_t* out = p.out + i * p.row_stride + j * p.columns + column;
          const S32 before = load<S32>(p.start != nullptr ? p.start + column : out);
          store(out, before + (S32(rows[j] * kInverse9) >> (kShift[i] + kShift[j])));
        }
      }
    }
  }

  static constexpr winograd_s16_kernel kernel() {
    return {transform_input, transform_weight, multiply, transform_output};
  }
};

}  // namespace
}  // namespace tfq::cpu

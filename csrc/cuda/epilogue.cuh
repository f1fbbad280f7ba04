// From int32 sums to the output: api.h states the formula, docs/numerics.md its bits.
//
// A thread holds runs of eight (or four) neighbouring output channels of 2 * kPiecesM rows. If all
// rows of the tile have one group and one sample, which is the rule, scale and offset of a run are
// combined once, and an output costs a subtraction, a conversion and a fused multiply-add. If it is
// bfloat16 alone as well, and so is a residual, the tile is Simple: what would be asked for every run
// is known once.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/elements.cuh"
#include "cuda/product_tile.cuh"

namespace tfq::cuda {

// Facts of an output row, kept in shared memory for the rows of the tile.
struct RowFacts {
  float scale;           // s of the input's group
  int32_t zero_point;    // z of it
  int32_t temporal_row;  // of the table; -1: none such, which gives NaN, for a kernel cannot raise
  float requant_r, requant_z;
  uint32_t missing;  // parts of A's row that are zeros where they stand for the zero-point
};

// A product whose rows of A are whole. Others say which parts of a row are missing, as bits, and add up
// the weights that those would have met.
struct NoBorder {
  static constexpr bool kExists = false;
  TFQ_DEVICE uint32_t missing(int) const { return 0; }
  template <int Count>
  TFQ_DEVICE void add(uint32_t, int, int32_t (&)[Count]) const {}
};

TFQ_DEVICE RowFacts row_facts(const Epilogue& e, int row) {
  RowFacts facts{};
  const int group = row / static_cast<int>(e.rows_per_group);
  const float* input = e.input.data + group * e.input.stride;
  facts.scale = input[0];
  facts.zero_point = static_cast<int32_t>(input[2]);
  if (e.temporal) {
    const int sample = row / static_cast<int>(e.rows_per_sample);
    const int64_t temporal = e.temporal_rows ? e.temporal_rows[sample] : sample;
    const bool exists = temporal >= 0 && temporal < e.temporal_table_rows;
    facts.temporal_row = exists ? static_cast<int32_t>(temporal) : -1;
  }
  if (e.requant.data) {
    const float* requant = e.requant.data + group * e.requant.stride;
    facts.requant_r = requant[1];
    facts.requant_z = requant[2];
  }
  return facts;
}

// The epilogue's line y = fma(f32(sum - zero), scale, offset) for Count channels of a row.
template <int Count>
struct ChannelFacts {
  float scale[Count], offset[Count];
  int32_t zero[Count];

  template <typename Border>
  TFQ_DEVICE void combine(const Epilogue& e, const RowFacts& row, int channel,
                          const Border& border) {
    load_run(e.weight_scale + channel, scale);
    uint32_t weight_sum[Count];
    load_words(e.weight_sum + channel, weight_sum);
    if (e.bias) load_run(e.bias + channel, offset);
    int32_t missing[Count] = {};
    border.add(row.missing, channel, missing);
    const bool exists = row.temporal_row >= 0;
    // Not as vectors: a slice of a wider row may begin anywhere.
    const float* temporal =
        e.temporal + (exists ? row.temporal_row : 0) * e.temporal_stride + channel;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      scale[i] = row.scale * scale[i];
      zero[i] = row.zero_point * (static_cast<int32_t>(weight_sum[i]) - missing[i]);
      if (!e.bias) offset[i] = 0.0f;
      if (e.temporal) offset[i] = offset[i] + (exists ? temporal[i] : ptx::quiet_nan());
    }
  }
};

template <bool Simple, int Count>
TFQ_DEVICE void store_outputs(const GemmLaunch& args, const RowFacts& facts, int row, int channel,
                              int channels, const float (&y)[Count]) {
  const Epilogue& e = args.epilogue;
  const int64_t index = static_cast<int64_t>(row) * channels + channel;
  if constexpr (Simple) {
    store_run(e.out, DType::kBFloat16, index, y);
    return;
  }
  uint8_t* quantized = e.quantized_out;
  if (e.out_dtype == DType::kUInt8) {
    quantized = static_cast<uint8_t*>(e.out);
  } else {
    store_run(e.out, e.out_dtype, index, y);
  }
  if (quantized) store_quantized(quantized + index, facts.requant_r, facts.requant_z, y);
}

// Count channels from `channel` on of one row; sums[i] belongs to channel + i.
template <bool Geglu, bool Simple, int Count>
TFQ_DEVICE void finish_run(const GemmLaunch& args, const RowFacts& facts,
                           const ChannelFacts<Count>& channels, int row, int channel,
                           const int32_t (&sums)[Count]) {
  const Epilogue& e = args.epilogue;
  float y[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i)
    y[i] = ptx::fused_multiply_add(static_cast<float>(sums[i] - channels.zero[i]),
                                   channels.scale[i], channels.offset[i]);
  if constexpr (Geglu) {
    float products[Count / 2];
#pragma unroll
    for (int i = 0; i < Count / 2; ++i)
      products[i] = y[4 * (i / 2) + i % 2] * gelu(y[4 * (i / 2) + i % 2 + 2]);
    store_outputs<Simple>(args, facts, row, channel / 2, args.n / 2, products);
  } else {
    if (e.residual) {
      float residual[Count];
      load_run(e.residual, Simple ? DType::kBFloat16 : e.residual_dtype,
               static_cast<int64_t>(row) * args.n + channel, residual);
#pragma unroll
      for (int i = 0; i < Count; ++i) y[i] = y[i] + residual[i];
    }
    if (e.activation == Activation::kSilu) {
#pragma unroll
      for (int i = 0; i < Count; ++i) y[i] = silu(y[i]);
    }
    store_outputs<Simple>(args, facts, row, channel, args.n, y);
  }
}

// All rows of a thread for the run that begins in column piece `piece`: both pieces of a channel
// group (Count = 8) or half a group (Count = 4).
template <typename Shape, bool Geglu, bool Simple, int Count, typename Border>
TFQ_DEVICE void finish_channels(const GemmLaunch& args, const Accumulators<Shape>& acc, int piece,
                                int tile_row, int tile_column, bool uniform,
                                const Border& border) {
  const int lane = simt::lane_index();
  const int column = Shape::piece_column(piece);
  const int channel = tile_column * Shape::kBlockN + column / kChannelGroup * kChannelGroup +
                      8 * (lane % 4) + (Count == 4 && column % kChannelGroup ? 4 : 0);
  if (channel >= args.n) return;
  const auto* facts = simt::shared_at<RowFacts>(Shape::scratch());
  ChannelFacts<Count> channels;
  channels.combine(args.epilogue, facts[0], channel, border);
  uint32_t missing = facts[0].missing;  // of the row that is combined
#pragma unroll
  for (int i = 0; i < 2 * Shape::kPiecesM; ++i) {
    const int local = Shape::piece_row(i / 2) + 8 * (i % 2) + lane / 4;
    const int row = tile_row * Shape::kBlockM + local;
    if (row >= args.m + (simt::fault(simt::kFaultStoreBeyondRows) ? 1 : 0)) continue;
    const RowFacts& row_facts = facts[Simple && !Border::kExists ? 0 : local];
    if ((!Simple && !uniform) || row_facts.missing != missing) {
      channels.combine(args.epilogue, row_facts, channel, border);
      missing = row_facts.missing;
    }
    int32_t sums[Count];
#pragma unroll
    for (int c = 0; c < Count; ++c)
      sums[c] = acc.value[i / 2][2 * piece + c / 2][2 * (i % 2) + c % 2];
    finish_run<Geglu, Simple, Count>(args, row_facts, channels, row, channel, sums);
  }
}

template <typename Shape, bool Geglu, bool Simple, typename Border>
TFQ_DEVICE void finish_pieces(const GemmLaunch& args, const Accumulators<Shape>& acc, int tile_row,
                              int tile_column, bool uniform, const Border& border) {
#pragma unroll
  for (int piece = 0; piece + 1 < Shape::kPiecesN; piece += 2)
    finish_channels<Shape, Geglu, Simple, 8>(args, acc, piece, tile_row, tile_column, uniform,
                                             border);
  if constexpr (Shape::kHalfGroup)
    finish_channels<Shape, Geglu, Simple, 4>(args, acc, Shape::kPiecesN - 1, tile_row, tile_column,
                                             uniform, border);
}

template <typename Shape, bool Geglu, typename Border = NoBorder>
TFQ_DEVICE void finish_tile(const GemmLaunch& args, const Accumulators<Shape>& acc, int tile_row,
                            int tile_column, const Border& border = {}) {
  const Epilogue& e = args.epilogue;
  const int first = tile_row * Shape::kBlockM;
  const int last = (args.m < first + Shape::kBlockM ? args.m : first + Shape::kBlockM) - 1;
  const auto group_rows = static_cast<int>(e.rows_per_group);
  const auto sample_rows = static_cast<int>(e.rows_per_sample);
  const bool uniform = first / group_rows == last / group_rows &&
                       (!e.temporal || first / sample_rows == last / sample_rows);
  static_assert(Shape::kBlockM <= Shape::kThreads);
  Shape::sync();  // every warp has left the scratch
  const int row = first + Shape::thread();
  if (row <= last) {
    RowFacts facts = row_facts(args.epilogue, row);
    facts.missing = border.missing(row);
    simt::shared_at<RowFacts>(Shape::scratch())[Shape::thread()] = facts;
  }
  Shape::sync();
  const bool simple = uniform && e.out_dtype == DType::kBFloat16 && !e.quantized_out &&
                      (!e.residual || e.residual_dtype == DType::kBFloat16);
  if constexpr (Shape::kSimpleTiles) {
    if (simple) {
      finish_pieces<Shape, Geglu, true>(args, acc, tile_row, tile_column, true, border);
      return;
    }
  }
  finish_pieces<Shape, Geglu, false>(args, acc, tile_row, tile_column, uniform, border);
}

}  // namespace tfq::cuda

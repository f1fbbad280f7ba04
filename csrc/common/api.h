// The C++ contract of every operation: argument structs with the shape and unit of each field.
//
// Plain old data only: these headers are included by files compiled for different instruction sets,
// and an inline function with external linkage here could be linked in its AVX-512 form for
// everybody.
//
// Layouts. Activations are dense NHWC, or (rows, channels). A *group* is the set of rows sharing
// one pair of quantisation parameters: an image, or a single token.
#pragma once

#include <cstdint>

namespace tfq {

enum class DType : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kUInt8 = 2,
  kFloat16 = 3
};  // 3: CUDA only

// Activation quantisation parameters, one row of three floats per group: scale s, r = f32(1/s), and
// the zero-point z (an integer in [0, 255] held as a float). x ~ (q - z) * s.
struct QParams {
  const float* data;  // (groups, 3)
  int64_t stride;     // floats between consecutive groups
};
constexpr int64_t kQParamsWidth = 3;

// kGeglu: channels 4 * i + {0, 1} are value channels 2 * i + {0, 1} and 4 * i + {2, 3} their gates;
// the output has n / 2 channels, value * gelu(gate), and there is no residual. CUDA only.
enum class Activation : int32_t { kNone = 0, kSilu = 1, kGeglu = 2 };

// What follows the integer product of a row and a column (DESIGN "Numerics"):
//   y = fma(f32(acc - z[g] * weight_sum[c]), f32(s[g] * weight_scale[c]),
//           f32(bias[c] + temporal[t][c]))
//   y = activation(y + residual[row][c]);  then stored as a float, requantised to uint8, or both.
struct Epilogue {
  QParams input;              // (groups, 3) parameters of the uint8 operand
  int64_t rows_per_group;     // rows of the output per row of `input` and of `requant`
  const float* weight_scale;  // (n)
  const int32_t* weight_sum;  // (n)  sum over k of the integer weights
  const float* bias;          // (n) or null
  const float* temporal;      // (table_rows, n) or null
  int64_t temporal_stride;    // floats between consecutive rows of it
  int64_t temporal_table_rows;
  const int64_t* temporal_rows;  // (samples) or null: row of `temporal` that each sample reads,
                                 // else its own; on CUDA in device memory
  int64_t rows_per_sample;       // rows of the output per sample
  const void* residual;          // (m, n) or null
  DType residual_dtype;          // float32 or bfloat16 (CUDA: or float16)
  Activation activation;
  void* out;               // (m, n), dense
  DType out_dtype;         // float32, bfloat16 or uint8 (CUDA: or float16)
  uint8_t* quantized_out;  // (m, n) or null: a second output, beside a float one
  QParams requant;         // (groups, 3) parameters of a uint8 output
};

// Integer weights (n, k) in the layout of gemm_s8/packed_layout.h: int8, or 4-bit q in [0, 15] with
// a zero-point per row, which stand for q - zero_point in [-15, 15].
struct PackedWeight {
  const void* data;
  const uint8_t* zero_point;  // (n) in [0, 15], or null: int8
};

// out (m, n) = x (m, k) times the transpose of weight (n, k).
struct GemmArgs {
  const uint8_t* x;  // (m, k), dense
  int64_t m, n, k;
  PackedWeight weight;
  Epilogue epilogue;
};

// Zero-padded 2-D convolution over NHWC, as an implicit GEMM with m = batch*out_h*out_w, n = out
// channels and k ordered (kernel row, kernel column, input channel). Padding means "real value 0",
// i.e. the zero-point of the image. `upsample` = 2 reads the input as if enlarged twofold by
// nearest neighbour: in_h and in_w are the sizes in memory.
struct ConvGeometry {
  int64_t batch, in_h, in_w, channels;
  int64_t out_h, out_w, out_channels;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;
  int64_t upsample;  // 1 or 2
};

struct ConvArgs {
  const uint8_t* x;  // (batch, in_h, in_w, channels)
  ConvGeometry geometry;
  PackedWeight weight;
  Epilogue epilogue;
};

// out[i][j] = f32(f32(w[i][j]) * scale[i]) of the integers w, rounded again if bfloat16.
struct DequantizeWeightArgs {
  PackedWeight weight;
  int64_t n, k;
  const float* scale;  // (n)
  void* out;           // (n, k), dense
  DType out_dtype;     // float32 or bfloat16 (CUDA: or float16)
};

// q = clamp(i32(rne(f32(x * r))) + z, 0, 255); NaN -> z.
struct QuantizeArgs {
  const void* x;  // (groups, group_size), dense
  DType x_dtype;  // float32 or bfloat16
  int64_t groups, group_size;
  QParams qparams;         // used when dynamic_qparams is null
  float* dynamic_qparams;  // (groups, 3) dense: when set, computed from each group's range and
                           // stored here
  uint8_t* out;            // (groups, group_size)
};

// GroupNorm, optional SiLU, quantise. The input is one NHWC tensor, or the channel-wise
// concatenation of two that is never materialised.
struct GroupNormArgs {
  const void* x;   // (batch, pixels, channels)
  const void* x2;  // (batch, pixels, channels2) or null
  DType x_dtype;   // of both: float32 or bfloat16
  int64_t batch, pixels, channels, channels2;
  int64_t num_groups;
  float eps;
  bool silu;
  const float* weight;     // (channels + channels2), per sample when affine_stride != 0
  const float* bias;       // (channels + channels2)
  int64_t affine_stride;   // floats between samples of weight and of bias; 0 = shared
  QParams qparams;         // (batch, 3); used when dynamic_qparams is null
  float* dynamic_qparams;  // (batch, 3) or null
  uint8_t* out;            // (batch, pixels, channels + channels2)
};

// LayerNorm and quantise, one group per row ("token") when dynamic, `rows_per_group` rows
// otherwise.
struct LayerNormArgs {
  const void* x;  // (rows, channels)
  DType x_dtype;
  int64_t rows, channels;
  float eps;
  const float* weight;  // (channels) or null
  const float* bias;    // (channels) or null
  QParams qparams;
  int64_t rows_per_group;
  float* dynamic_qparams;  // (rows, 3) or null
  uint8_t* out;            // (rows, channels)
};

// GEGLU and quantise: out = quantise(value * gelu(gate)) with x = [value | gate], exact (erf) GELU.
struct GegluArgs {
  const void* x;  // (rows, 2 * channels)
  DType x_dtype;
  int64_t rows, channels;
  QParams qparams;
  int64_t rows_per_group;
  float* dynamic_qparams;  // (rows, 3) or null
  uint8_t* out;            // (rows, channels)
};

// A ResBlock: conv2(silu(norm2(hidden))) + shortcut, hidden = conv1(silu(norm1([x | x2]))), with
// the convolutions on inputs quantised by image. Every image has a row of qparams, of `temporal`
// and, if its stride is not 0, of an affine map; rows_per_group and rows_per_sample are its pixels.
// The shortcut is x (shortcuts = 0), or the sum of 1x1 convolutions of x and x2 quantised by pixel.
//
// Set by the callee: what passes between the operations (norm.out, norm2.x, conv.x, hidden,
// residuals, all of a shortcut's epilogue but weights and bias), and qparams where qparams.data is
// null (dynamic).
struct ResnetBlockArgs {
  GroupNormArgs norm1;
  ConvArgs conv1;
  GroupNormArgs norm2;
  ConvArgs conv2;     // epilogue.out is the result, of the type of x
  int64_t shortcuts;  // 0, 1 or 2
  GemmArgs shortcut[2];
};

// softmax(query * key^T * scale) * value for each batch and head, in integers; docs/numerics.md has
// the formula. A row of the tensors holds `heads` heads of `head_size` channels.
struct AttentionArgs {
  const void* query;  // (batch, tokens, heads * head_size)
  const void* key;    // (batch, kv_tokens, heads * head_size)
  const void* value;  // (batch, kv_tokens, heads * head_size)
  DType dtype;        // of the three: float32 or bfloat16
  int64_t batch, tokens, kv_tokens, heads, head_size;
  float scale;
  void* out;  // (batch, tokens, heads * head_size)
  DType out_dtype;
};

// out[i] = table[rows[i]].
struct TemporalGatherArgs {
  const float* table;  // (table_rows, width)
  int64_t table_rows, width;
  const int64_t* rows;  // (count), each in [0, table_rows)
  int64_t count;
  float* out;  // (count, width)
};

// The same of a quantised table whose columns are n features, each with parameters per row:
//   out[i][c] = f32(f32(table[rows[i]][c] - z) * s),  (s, z) = qparams[rows[i]][feature of c]
struct TemporalDequantizeArgs {
  const uint8_t* table;  // (table_rows, width)
  int64_t table_rows, width;
  const float* qparams;    // (table_rows, features, 2) of scale and zero-point
  const int64_t* offsets;  // (features + 1) columns at which features begin, from 0 up to width
  int64_t features;
  const int64_t* rows;  // (count), each in [0, table_rows)
  int64_t count;
  float* out;  // (count, width)
};

}  // namespace tfq

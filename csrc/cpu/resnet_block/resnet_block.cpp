// The operations of a ResBlock, image by image where an image's activations outweigh the weights:
// then they stay in L2 from one operation to the next, and a thread that has images of its own
// waits for nobody. Small images go through each operation together, which reads the weights once.
#include "cpu/resnet_block/resnet_block.h"

#include "common/math.h"
#include "common/parallel.h"
#include "cpu/conv2d_s8/conv2d_s8.h"
#include "cpu/element_type.h"
#include "cpu/gemm_s8/gemm_s8.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/quantize/quantize.h"

namespace tfq::cpu {
namespace {

constexpr int kBlockSlot = 3;
constexpr int64_t kAlignment = 64;
// Bytes of weights for each byte of an image's activations up to which images go one by one.
// Weights of 0.6 MB gain at 16x16 pixels of 256 channels (0.26 MB) and would lose at 8x8.
constexpr int64_t kWeightShare = 4;

GroupNormArgs images_of(GroupNormArgs a, int64_t first, int64_t count) {
  a.x = element_at(a.x, a.x_dtype, first * a.pixels * a.channels);
  if (a.x2) a.x2 = element_at(a.x2, a.x_dtype, first * a.pixels * a.channels2);
  a.weight += first * a.affine_stride;
  a.bias += first * a.affine_stride;
  if (a.qparams.data) a.qparams.data += first * a.qparams.stride;
  a.batch = count;
  return a;
}

// One row of parameters and of `temporal` for each image, `pixels` rows of the output.
Epilogue images_of(Epilogue e, int64_t first, int64_t pixels, int64_t n) {
  if (e.input.data) e.input.data += first * e.input.stride;
  if (e.temporal) e.temporal += first * e.temporal_stride;
  if (e.out) {
    const int64_t offset = first * pixels * n * element_bytes(e.out_dtype);
    e.out = static_cast<char*>(e.out) + offset;
  }
  return e;
}

ConvArgs images_of(ConvArgs a, int64_t first, int64_t count) {
  const int64_t pixels = a.geometry.out_h * a.geometry.out_w;
  a.epilogue = images_of(a.epilogue, first, pixels, a.geometry.out_channels);
  a.geometry.batch = count;
  return a;
}

// What passes between the operations, for some images.
struct Workspace {
  Workspace(const ResnetBlockArgs& args, int64_t images) {
    const GroupNormArgs& norm1 = args.norm1;
    const int64_t rows = images * norm1.pixels, channels = norm1.channels + norm1.channels2;
    const int64_t n = args.conv1.geometry.out_channels;
    const int64_t sizes[] = {rows * channels,
                             rows * n * element_bytes(norm1.x_dtype),
                             rows * n,
                             2 * images * kQParamsWidth * 4,
                             args.shortcuts ? rows * max_of(norm1.channels, norm1.channels2) : 0,
                             args.shortcuts ? rows * kQParamsWidth * 4 : 0,
                             args.shortcuts ? rows * n * element_bytes(norm1.x_dtype) : 0,
                             args.shortcuts > 1 ? rows * n * 4 : 0};
    constexpr int kPieces = sizeof(sizes) / sizeof(sizes[0]);
    int64_t offsets[kPieces], total = 0;
    for (int i = 0; i < kPieces; ++i) {
      offsets[i] = total;
      total += round_up(sizes[i], kAlignment);
    }
    auto* memory = static_cast<char*>(thread_scratch(kBlockSlot, static_cast<size_t>(total)));
    q1 = reinterpret_cast<uint8_t*>(memory + offsets[0]);
    hidden = memory + offsets[1];
    q2 = reinterpret_cast<uint8_t*>(memory + offsets[2]);
    qparams1 = reinterpret_cast<float*>(memory + offsets[3]);
    qparams2 = qparams1 + images * kQParamsWidth;
    shortcut_q = reinterpret_cast<uint8_t*>(memory + offsets[4]);
    shortcut_qparams = reinterpret_cast<float*>(memory + offsets[5]);
    shortcut = memory + offsets[6];
    shortcut_sum = reinterpret_cast<float*>(memory + offsets[7]);
  }

  uint8_t *q1, *q2;            // inputs of the convolutions
  void* hidden;                // between them
  float *qparams1, *qparams2;  // dynamic ones, of each image
  uint8_t* shortcut_q;         // a source, quantised by pixel
  float* shortcut_qparams;     // of each pixel
  void* shortcut;              // its result
  float* shortcut_sum;         // the first of two sources alone
};

// Norm, activation, convolution.
void half_block(GroupNormArgs norm, ConvArgs conv, uint8_t* q, float* dynamic_qparams) {
  norm.out = q;
  conv.x = q;
  if (norm.qparams.data == nullptr) {
    norm.dynamic_qparams = dynamic_qparams;
    conv.epilogue.input = {dynamic_qparams, kQParamsWidth};
  }
  group_norm_silu_quantize(norm);
  conv2d_s8(conv);
}

void run_shortcut(const ResnetBlockArgs& args, const GroupNormArgs& norm1, const Workspace& w) {
  const void* const sources[] = {norm1.x, norm1.x2};
  const int64_t rows = norm1.batch * norm1.pixels;
  for (int64_t i = 0; i < args.shortcuts; ++i) {
    GemmArgs product = args.shortcut[i];
    quantize({sources[i],
              norm1.x_dtype,
              rows,
              product.k,
              {nullptr, 0},
              w.shortcut_qparams,
              w.shortcut_q});
    const bool last = i == args.shortcuts - 1;
    product.x = w.shortcut_q;
    product.m = rows;
    Epilogue& e = product.epilogue;
    e.input = {w.shortcut_qparams, kQParamsWidth};
    e.rows_per_group = 1;
    e.residual = i == 0 ? nullptr : w.shortcut_sum;
    e.residual_dtype = DType::kFloat32;
    e.out = last ? w.shortcut : w.shortcut_sum;
    e.out_dtype = last ? norm1.x_dtype : DType::kFloat32;
    gemm_s8(product);
  }
}

void run_images(const ResnetBlockArgs& args, int64_t first, int64_t count) {
  const Workspace w(args, count);
  const GroupNormArgs norm1 = images_of(args.norm1, first, count);
  ConvArgs conv1 = images_of(args.conv1, first, count);
  conv1.epilogue.out = w.hidden;
  half_block(norm1, conv1, w.q1, w.qparams1);

  GroupNormArgs norm2 = images_of(args.norm2, first, count);
  norm2.x = w.hidden;
  ConvArgs conv2 = images_of(args.conv2, first, count);
  conv2.epilogue.residual = norm1.x;
  if (args.shortcuts) {
    run_shortcut(args, norm1, w);
    conv2.epilogue.residual = w.shortcut;
  }
  half_block(norm2, conv2, w.q2, w.qparams2);
}

}  // namespace

void resnet_block(const ResnetBlockArgs& args) {
  const int64_t batch = args.norm1.batch, threads = num_threads();
  const int64_t n = args.conv1.geometry.out_channels;
  const int64_t image_bytes = args.norm1.pixels * n * element_bytes(args.norm1.x_dtype);
  const int64_t weight_bytes = n * 9 * max_of(n, args.norm1.channels + args.norm1.channels2);
  if (image_bytes * kWeightShare < weight_bytes) {
    if (batch > 0) run_images(args, 0, batch);
  } else if (batch % threads == 0 || batch >= 4 * threads) {
    parallel_for(batch, [&args](int64_t image) { run_images(args, image, 1); });
  } else {
    for (int64_t image = 0; image < batch; ++image) run_images(args, image, 1);
  }
}

}  // namespace tfq::cpu

// A build without CUDA kernels.
#include "cuda/cuda.h"

namespace tfq::cuda {
namespace {

[[noreturn]] void without_cuda(const char* operation) {
  throw CudaError(
      std::string(operation) +
      ": this build of tfq has no CUDA kernels; build it where nvcc is, with TFQ_CUDA=ON");
}

}  // namespace

std::vector<std::string> built_archs() { return {}; }

void set_overlapping_launches(bool) { without_cuda("set_overlapping_launches"); }

void gemm_s8(const GemmArgs&, const ProductOptions&, const Launch&) { without_cuda("gemm_s8"); }

void conv2d_s8(const ConvArgs&, const uint8_t*, int64_t, const ProductOptions&, const Launch&) {
  without_cuda("conv2d_s8");
}

int64_t enlarged_bytes(const ConvGeometry&, int64_t, int) { return 0; }

int64_t image_workspace(int64_t, int64_t, int64_t) { return 0; }

void quantize(const QuantizeArgs&, float*, const Launch&) { without_cuda("quantize"); }

void group_norm_silu_quantize(const GroupNormArgs&, float*, const Launch&) {
  without_cuda("group_norm_silu_quantize");
}

void layer_norm_quantize(const LayerNormArgs&, const Launch&) {
  without_cuda("layer_norm_quantize");
}

void geglu_quantize(const GegluArgs&, const Launch&) { without_cuda("geglu_quantize"); }

void dequantize_weight(const DequantizeWeightArgs&, const Launch&) {
  without_cuda("dequantize_weight");
}

void attention_s8(const AttentionArgs&, void*, const Launch&) { without_cuda("attention_s8"); }

void temporal_gather(const TemporalGatherArgs&, const Launch&) { without_cuda("temporal_gather"); }

void temporal_gather_dequantize(const TemporalDequantizeArgs&, const Launch&) {
  without_cuda("temporal_gather");
}

}  // namespace tfq::cuda

// The epilogue of the products alone, `Runs` runs of eight outputs: what two numbers of runs differ by is
// what a run costs. What a launch decides is known at compile time here, so that the machine code is
// the path one launch takes. Inspected by tests/test_cuda_build.py, never run.
#include "cuda/epilogue.cuh"

namespace tfq::cuda {

enum class Path { kStore, kResidual, kResidualSiluQuantize, kDual, kGeglu };

template <Path kPath, int Runs>
TFQ_KERNEL epilogue_probe(TFQ_GRID_CONSTANT const GemmLaunch args) {
  constexpr int kCount = 8;
  GemmLaunch known = args;
  Epilogue& e = known.epilogue;
  e.temporal = nullptr;
  if (kPath != Path::kDual) e.quantized_out = nullptr;
  e.out_dtype = kPath == Path::kResidualSiluQuantize ? DType::kUInt8 : DType::kBFloat16;
  e.activation = kPath == Path::kResidualSiluQuantize ? Activation::kSilu : Activation::kNone;
  e.residual_dtype = DType::kBFloat16;
  if (kPath == Path::kStore || kPath == Path::kDual) e.residual = nullptr;
  const int channel = kCount * simt::thread_index();
  const RowFacts facts = *simt::shared_at<RowFacts>(0);
  ChannelFacts<kCount> channels;
  channels.combine(e, facts, channel, NoBorder{});
  // Sums from shared memory, two instructions a run.
  const auto* sums = simt::shared_at<uint32_t>(1024) + channel;
#pragma unroll
  for (int run = 0; run < Runs; ++run) {
    uint32_t words[kCount];
    load_words(sums + 1024 * run, words);
    int32_t values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = static_cast<int32_t>(words[i]);
    finish_run<kPath == Path::kGeglu, kCount>(known, facts, channels, 8 * run, channel, values);
  }
}

// Kernels exist where they are used.
using Probe = void (*)(const GemmLaunch);
extern const Probe probes[];
const Probe probes[] = {
    epilogue_probe<Path::kStore, 2>,
    epilogue_probe<Path::kStore, 6>,
    epilogue_probe<Path::kResidual, 2>,
    epilogue_probe<Path::kResidual, 6>,
    epilogue_probe<Path::kResidualSiluQuantize, 2>,
    epilogue_probe<Path::kResidualSiluQuantize, 6>,
    epilogue_probe<Path::kDual, 2>,
    epilogue_probe<Path::kDual, 6>,
    epilogue_probe<Path::kGeglu, 2>,
    epilogue_probe<Path::kGeglu, 6>,
};

}  // namespace tfq::cuda

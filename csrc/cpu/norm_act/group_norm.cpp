// GroupNorm driver: statistics, per-channel coefficients, then tiles of pixels that are normalised
// into L1, activated and quantised.
#include <cmath>

#include "common/check.h"
#include "common/math.h"
#include "common/parallel.h"
#include "common/quant.h"
#include "cpu/element_type.h"
#include "cpu/norm_act/norm_act.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int64_t kTileElements = 4096;   // 16 KiB of float32: a third of L1
constexpr int64_t kTaskElements = 32768;  // some 15 us of work
constexpr int64_t kTaskPartials = 4096;   // partial sums of a channel: some 10 us of work

constexpr int kPartialSlot = 0;  // partial sums, then ranges
constexpr int kCoefficientSlot = 1;
constexpr int kTileSlot = 2;

struct Source {
  const void* x;  // (pixels, channels) of one sample
  int64_t channels;
  int64_t first;  // its first channel in the output
};

// One image. Its loops run in parallel unless the images already do.
struct Sample {
  const GroupNormArgs& args;
  const group_norm_kernel& kernel;
  const quantize_kernel& quantizer;
  int64_t index;
  int64_t channels;  // of both sources
  int64_t source_count;
  Source sources[2];
  int64_t chunks, chunks_per_task;
  int64_t groups_per_task;
  int64_t tile_pixels, task_pixels;
  float* partials;      // (chunks, 3, channels)
  float* coefficients;  // (2, channels): scale and offset

  void run();
  void statistics(int64_t task) const;
  void group_coefficients(int64_t group) const;
  void coefficients_of_task(int64_t task) const;
  void normalize_tile(int64_t pixel, int64_t count, float* tile) const;
  template <typename F>
  void for_tiles(int64_t task, const F& f) const;
  void write_dynamic_qparams(float* qparams) const;
};

void Sample::statistics(int64_t task) const {
  const int64_t end = min_of(chunks, (task + 1) * chunks_per_task);
  for (int64_t chunk = task * chunks_per_task; chunk < end; ++chunk) {
    const int64_t pixel = chunk * kChunkPixels;
    for (int64_t s = 0; s < source_count; ++s) {
      const Source& source = sources[s];
      kernel.statistics(element_at(source.x, args.x_dtype, pixel * source.channels), args.x_dtype,
                        min_of(kChunkPixels, args.pixels - pixel), source.channels,
                        partials + chunk * 3 * channels + source.first, channels);
    }
  }
}

// The partial sums are shifted by values of their own chunk and channel; here they are moved, in
// double precision and in a fixed order, to one value of the group.
void Sample::group_coefficients(int64_t group) const {
  const int64_t width = channels / args.num_groups;
  const int64_t begin = group * width;
  const double reference = static_cast<double>(partials[begin]);
  double sum = 0.0, square = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* partial = partials + chunk * 3 * channels;
    const double count =
        static_cast<double>(min_of(kChunkPixels, args.pixels - chunk * kChunkPixels));
    for (int64_t c = begin; c < begin + width; ++c) {
      const double shift = static_cast<double>(partial[c]) - reference;
      const double partial_sum = static_cast<double>(partial[channels + c]);
      const double shifted_sum = partial_sum + count * shift;
      sum += shifted_sum;
      square +=
          static_cast<double>(partial[2 * channels + c]) + shift * (partial_sum + shifted_sum);
    }
  }
  const double values = static_cast<double>(args.pixels * width);
  const double mean_shift = sum / values;
  const double mean = reference + mean_shift;
  const double variance = (square - sum * mean_shift) / values;
  const double rstd =
      1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + static_cast<double>(args.eps));
  const float* weight = args.weight + index * args.affine_stride;
  const float* bias = args.bias + index * args.affine_stride;
  for (int64_t c = begin; c < begin + width; ++c) {
    const float scale = static_cast<float>(static_cast<double>(weight[c]) * rstd);
    coefficients[c] = scale;
    coefficients[channels + c] =
        static_cast<float>(static_cast<double>(bias[c]) - mean * static_cast<double>(scale));
  }
}

void Sample::coefficients_of_task(int64_t task) const {
  const int64_t end = min_of(args.num_groups, (task + 1) * groups_per_task);
  for (int64_t group = task * groups_per_task; group < end; ++group) group_coefficients(group);
}

void Sample::normalize_tile(int64_t pixel, int64_t count, float* tile) const {
  for (int64_t s = 0; s < source_count; ++s) {
    const Source& source = sources[s];
    kernel.affine(element_at(source.x, args.x_dtype, pixel * source.channels), args.x_dtype, count,
                  source.channels, coefficients + source.first,
                  coefficients + channels + source.first, tile + source.first, channels);
  }
  if (args.silu) kernel.silu(tile, count * channels);
}

// f(values, first pixel, number of values) for the tiles of a task.
template <typename F>
void Sample::for_tiles(int64_t task, const F& f) const {
  auto* tile = static_cast<float*>(
      thread_scratch(kTileSlot, static_cast<size_t>(tile_pixels * channels) * sizeof(float)));
  const int64_t end = min_of(args.pixels, (task + 1) * task_pixels);
  for (int64_t pixel = task * task_pixels; pixel < end; pixel += tile_pixels) {
    const int64_t count = min_of(tile_pixels, end - pixel);
    normalize_tile(pixel, count, tile);
    f(tile, pixel, count * channels);
  }
}

void Sample::write_dynamic_qparams(float* qparams) const {
  const int64_t tasks = ceil_div(args.pixels, task_pixels);
  auto* ranges = static_cast<float*>(
      thread_scratch(kPartialSlot, static_cast<size_t>(2 * tasks) * sizeof(float)));
  struct Job {
    const Sample& sample;
    float* ranges;
  };
  const Job job{*this, ranges};
  parallel_for(tasks, [&job](int64_t task) {
    float range[2] = {0.0f, 0.0f};
    job.sample.for_tiles(task, [&](const float* values, int64_t, int64_t n) {
      job.sample.quantizer.range(values, DType::kFloat32, n, range);
    });
    job.ranges[2 * task] = range[0];
    job.ranges[2 * task + 1] = range[1];
  });
  float low = 0.0f, high = 0.0f;
  for (int64_t task = 0; task < tasks; ++task) {
    if (ranges[2 * task] < low) low = ranges[2 * task];
    if (ranges[2 * task + 1] > high) high = ranges[2 * task + 1];
  }
  qparams_from_range(low, high, qparams);
}

void Sample::run() {
  partials = static_cast<float*>(
      thread_scratch(kPartialSlot, static_cast<size_t>(chunks * 3 * channels) * sizeof(float)));
  coefficients = static_cast<float*>(
      thread_scratch(kCoefficientSlot, static_cast<size_t>(2 * channels) * sizeof(float)));
  parallel_for(ceil_div(chunks, chunks_per_task), [this](int64_t task) { statistics(task); });
  parallel_for(ceil_div(args.num_groups, groups_per_task),
               [this](int64_t task) { coefficients_of_task(task); });

  const float* qparams = nullptr;
  if (args.dynamic_qparams) {
    write_dynamic_qparams(args.dynamic_qparams + index * kQParamsWidth);
    qparams = args.dynamic_qparams + index * kQParamsWidth;
  } else {
    qparams = args.qparams.data + index * args.qparams.stride;
  }
  struct Job {
    const Sample& sample;
    const float* qparams;
  };
  const Job job{*this, qparams};
  parallel_for(ceil_div(args.pixels, task_pixels), [&job](int64_t task) {
    const Sample& s = job.sample;
    s.for_tiles(task, [&](const float* values, int64_t pixel, int64_t n) {
      s.quantizer.quantize(values, DType::kFloat32, n, job.qparams[1], job.qparams[2],
                           s.args.out + (s.index * s.args.pixels + pixel) * s.channels);
    });
  });
}

void run_sample(const GroupNormArgs& args, int64_t index) {
  const Level level = active_level();
  const int64_t channels = args.channels + args.channels2;
  const int64_t chunks = ceil_div(args.pixels, kChunkPixels);
  const int64_t tile_pixels = max_of(1, kTileElements / channels);
  Sample sample{
      args,
      select_group_norm(level),
      select_quantize(level),
      index,
      channels,
      args.x2 ? 2 : 1,
      {{element_at(args.x, args.x_dtype, index * args.pixels * args.channels), args.channels, 0},
       {nullptr, args.channels2, args.channels}},
      chunks,
      max_of(1, kTaskElements / (kChunkPixels * channels)),
      max_of(1, kTaskPartials / (chunks * (channels / args.num_groups))),
      tile_pixels,
      round_up(max_of(1, kTaskElements / channels), tile_pixels),
      nullptr,
      nullptr};
  if (args.x2)
    sample.sources[1].x = element_at(args.x2, args.x_dtype, index * args.pixels * args.channels2);
  sample.run();
}

}  // namespace

void group_norm_silu_quantize(const GroupNormArgs& args) {
  const int64_t channels = args.channels + args.channels2;
  TFQ_CHECK(args.channels > 0 && args.channels2 >= 0 && (args.x2 != nullptr || args.channels2 == 0),
            "group_norm_silu_quantize: channels must be positive, got ", args.channels, " and ",
            args.channels2);
  TFQ_CHECK(args.num_groups > 0 && channels % args.num_groups == 0,
            "group_norm_silu_quantize: num_groups must divide the channels, got ", args.num_groups,
            " groups of ", channels, " channels");
  if (args.pixels == 0) {
    for (int64_t index = 0; args.dynamic_qparams && index < args.batch; ++index)
      qparams_from_range(0.0f, 0.0f, args.dynamic_qparams + index * kQParamsWidth);
    return;
  }
  // An image per thread keeps it in that thread's cache between the passes and needs no barriers;
  // with few images for the threads, each image is split instead.
  const int64_t threads = num_threads();
  if (args.batch % threads == 0 || args.batch >= 4 * threads) {
    parallel_for(args.batch, [&args](int64_t index) { run_sample(args, index); });
  } else {
    for (int64_t index = 0; index < args.batch; ++index) run_sample(args, index);
  }
}

}  // namespace tfq::cpu

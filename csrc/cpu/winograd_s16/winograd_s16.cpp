// Loop nest of the Winograd convolution. A task is a range of tiles times a range of panels; it
// transforms its patches once, and for each group of panels and chunk of channels the weights,
// which then stay in L2 while all tiles of the task pass.
#include "cpu/winograd_s16/winograd_s16.h"

#include <cstring>

#include "common/math.h"
#include "common/parallel.h"
#include "cpu/expand_s4/expand_s4.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/range.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int kWorkSlot = 0;
constexpr int kWeightSlot = 2;

// Share of L2 for the sums of the tiles multiplied together, at all positions; the more tiles, the
// more often the taps of a position are read from L1.
constexpr int64_t kSumsShare = 8;
constexpr int64_t kGroupPanels = 2;
// Bytes between positions beyond their own size, so that the 36 streams of a transform do not meet
// in one set of the cache.
constexpr int64_t kSkew = 64;
// Tiles that make up for transforming the weights.
constexpr int64_t kTilesPerTransform = 24;
// Least tiles of a task with AVX-512 VNNI, however many bytes their patches have: they are read in
// order, two bytes a cycle, which L3 gives as well, while each task transforms the weights again.
// Measured on Zen 4 (1 MiB of L2), one thread, 28 and 64 tiles: 640 -> 320 at 64x64 25.6 and 22.4
// ms, 640 channels at 32x32 12.1 and 10.7; 128 tiles gain another 2 % and leave nothing to even out
// two threads with. AVX2, which reads them more often, loses 4 %.
constexpr int64_t kTaskTiles = 64;

// The time of a convolution, in pixels of the direct one, is that of its tiles and of some more for
// the weights' transform. Measured on a Xeon (Emerald Rapids), one thread, 64 to 1280 channels.
// AVX2, where the direct kernel needs two instructions for 16 products: 2.0x at 4 tiles, 3.0x at
// 16, 3.4x at 64 and more. AVX-512 VNNI, where one makes 64 of them and VPDPWSSD 32: 0.9x at 9,
// 1.0x at 16 and 1.1x at 64 tiles (two threads: 1.36x); 0.8x at 64 channels. AMX would lose.
constexpr int64_t kAvx2Overhead = 3, kAvx2Gain = 3;
constexpr int64_t kVnniOverhead = 6, kVnniLoss = 72;  // percent
constexpr int64_t kVnniChannels = 128;

struct Shape {
  int64_t rows_of_tiles, columns_of_tiles, tiles;  // of an image; of all images
  int64_t blocks, chunks, panels;
  int64_t round_tiles;  // multiplied together
};

struct Tile {
  int64_t image, y, x;  // of the first pixel
};

struct Problem {
  const ConvArgs& args;
  const Shape& shape;
  const winograd_s16_kernel& kernel;
  const epilogue_kernel& store;
  const expand_s4_kernel& expand;
};

Shape shape_of(const ConvGeometry& g) {
  const int64_t rows = ceil_div(g.out_h, kWinogradTile), columns = ceil_div(g.out_w, kWinogradTile);
  const int64_t blocks = g.channels / kWinogradBlock;
  constexpr int64_t kTileBytes = kWinogradPositions * kGroupPanels * kPanelColumns * 4;
  return {rows,
          columns,
          g.batch * rows * columns,
          blocks,
          ceil_div(blocks, kWinogradChunkBlocks),
          packed_panels(g.out_channels),
          max_of(1, l2_bytes() / kSumsShare / kTileBytes)};
}

Tile tile_at(const Shape& s, int64_t tile) {
  return {tile / (s.rows_of_tiles * s.columns_of_tiles),
          tile / s.columns_of_tiles % s.rows_of_tiles * kWinogradTile,
          tile % s.columns_of_tiles * kWinogradTile};
}

// Blocks of chunk i: as equal as they can be.
Range chunk_at(const Shape& s, int64_t chunk) {
  return {s.blocks * chunk / s.chunks, s.blocks * (chunk + 1) / s.chunks};
}

// Memory of a task, carved from one piece of scratch.
struct Work {
  int16_t* patches;
  int64_t patch_stride;  // of positions
  int16_t* taps;
  int64_t tap_stride, panel_stride;
  int32_t* sums;
  int64_t sum_stride;
  int32_t* out;      // (run, 4 rows, 4 pixels of each tile, columns)
  int32_t* start;    // (columns) of the group, what sums start from
  uint8_t* padding;  // channels times the zero-point
};

template <typename T>
T* carve(char*& at, int64_t count) {
  T* taken = reinterpret_cast<T*>(at);
  at += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  return taken;
}

Work allocate(const Shape& s, int64_t tiles) {
  constexpr int64_t kColumns = kGroupPanels * kPanelColumns;
  Work w{};
  const int64_t chunk_blocks = ceil_div(s.blocks, s.chunks);
  w.patch_stride = tiles * s.blocks * kWinogradPairs * 2 + kSkew / 2;
  w.tap_stride = chunk_blocks * kWinogradPairs * kPanelColumns * 2 + kSkew / 2;
  w.panel_stride = kWinogradPositions * w.tap_stride;
  w.sum_stride = min_of(s.round_tiles, tiles) * kColumns + kSkew / 4;
  const int64_t patch_count = kWinogradPositions * w.patch_stride;
  const int64_t tap_count = kGroupPanels * w.panel_stride;
  const int64_t sum_count = kWinogradPositions * w.sum_stride;
  const int64_t out_count = tiles * kWinogradTile * kWinogradTile * kColumns;
  const int64_t bytes = 2 * (patch_count + tap_count) + 4 * (sum_count + out_count + kColumns) +
                        s.blocks * kWinogradBlock + 6 * 64;
  auto* at = static_cast<char*>(thread_scratch(kWorkSlot, static_cast<size_t>(bytes)));
  w.patches = carve<int16_t>(at, patch_count);
  w.taps = carve<int16_t>(at, tap_count);
  w.sums = carve<int32_t>(at, sum_count);
  w.out = carve<int32_t>(at, out_count);
  w.start = carve<int32_t>(at, kColumns);
  w.padding = carve<uint8_t>(at, s.blocks * kWinogradBlock);
  return w;
}

void find_pixels(const ConvGeometry& g, const uint8_t* x, const Tile& tile, const uint8_t* padding,
                 const uint8_t** pixels) {
  const uint8_t* image = x + tile.image * g.in_h * g.in_w * g.channels;
  for (int64_t i = 0; i < kWinogradPatch; ++i) {
    const int64_t row = tile.y - g.pad_top + i;
    for (int64_t j = 0; j < kWinogradPatch; ++j) {
      const int64_t column = tile.x - g.pad_left + j;
      const bool inside =
          row >= 0 && row < g.in_h * g.upsample && column >= 0 && column < g.in_w * g.upsample;
      *pixels++ =
          inside ? image + (row / g.upsample * g.in_w + column / g.upsample) * g.channels : padding;
    }
  }
}

// int16 from a strip of the patches to the next.
int64_t strip_stride(Range tiles) { return (tiles.end - tiles.begin) * kWinogradStrip * 2; }

int16_t* patches_at(Range tiles, int64_t tile, int64_t block, const Work& w) {
  return w.patches + 2 * block * strip_stride(tiles) + (tile - tiles.begin) * kWinogradStrip * 2;
}

void transform_patches(const Problem& p, Range tiles, const Work& w) {
  const ConvGeometry& g = p.args.geometry;
  const Epilogue& e = p.args.epilogue;
  int64_t image = -1;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Tile tile = tile_at(p.shape, t);
    if (tile.image != image) {
      image = tile.image;
      const int64_t group = image * g.out_h * g.out_w / e.rows_per_group;
      std::memset(w.padding, static_cast<int>(e.input.data[group * e.input.stride + 2]),
                  static_cast<size_t>(g.channels));
    }
    const uint8_t* pixels[kWinogradPositions];
    find_pixels(g, p.args.x, tile, w.padding, pixels);
    p.kernel.transform_input(
        {pixels, p.shape.blocks, patches_at(tiles, t, 0, w), w.patch_stride, strip_stride(tiles)});
  }
}

// Tiles from `tile` on, before `end`, in its row of tiles: a run, whose pixels are rows of the
// output, end to end.
int64_t run_length(const Shape& s, int64_t tile, int64_t end) {
  return min_of(end - tile, s.columns_of_tiles - tile % s.columns_of_tiles);
}

// Sums of one round of tiles over one chunk, stored or added to their place in w.out.
void multiply_round(const Problem& p, Range tiles, Range round, Range chunk, bool first_chunk,
                    int64_t panels, const Work& w) {
  const int64_t columns = panels * kPanelColumns;
  const int16_t* patches = patches_at(tiles, round.begin, chunk.begin, w);
  for (int64_t position = 0; position < kWinogradPositions; ++position)
    p.kernel.multiply({patches + position * w.patch_stride, strip_stride(tiles),
                       w.taps + position * w.tap_stride, w.panel_stride, round.end - round.begin,
                       panels, 2 * (chunk.end - chunk.begin), w.sums + position * w.sum_stride});
  for (int64_t t = round.begin; t < round.end; ++t) {
    // The run the tile belongs to begins with its row of tiles, or with the task.
    const int64_t first = max_of(tiles.begin, t - t % p.shape.columns_of_tiles);
    const int64_t run = run_length(p.shape, first, tiles.end);
    int32_t* out =
        w.out + ((first - tiles.begin) * kWinogradTile + (t - first)) * kWinogradTile * columns;
    p.kernel.transform_output({w.sums + (t - round.begin) * columns, w.sum_stride, columns, out,
                               run * kWinogradTile * columns, first_chunk ? w.start : nullptr});
  }
}

void store_runs(const Problem& p, Range tiles, Range panels, const Work& w) {
  const ConvGeometry& g = p.args.geometry;
  const int64_t columns = (panels.end - panels.begin) * kPanelColumns;
  const int64_t first_column = panels.begin * kPanelColumns;
  const int64_t real_columns = min_of(columns, g.out_channels - first_column);
  for (int64_t t = tiles.begin; t < tiles.end;) {
    const int64_t run = run_length(p.shape, t, tiles.end);
    const Tile tile = tile_at(p.shape, t);
    const int64_t pixels = min_of(run * kWinogradTile, g.out_w - tile.x);
    const int32_t* out = w.out + (t - tiles.begin) * kWinogradTile * kWinogradTile * columns;
    for (int64_t i = 0; i < min_of(kWinogradTile, g.out_h - tile.y); ++i)
      p.store.store({out + i * run * kWinogradTile * columns, columns,
                     (tile.image * g.out_h + tile.y + i) * g.out_w + tile.x, pixels, first_column,
                     real_columns, g.out_channels},
                    p.args.epilogue);
    t += run;
  }
}

// 128 * weight_sum makes up for centred pixels.
void find_start(const Problem& p, Range panels, const Work& w) {
  const int64_t first = panels.begin * kPanelColumns;
  for (int64_t c = 0; c < (panels.end - panels.begin) * kPanelColumns; ++c)
    w.start[c] =
        first + c < p.args.geometry.out_channels ? 128 * p.args.epilogue.weight_sum[first + c] : 0;
}

void run_task(const Problem& p, Range tiles, Range panels) {
  const Work w = allocate(p.shape, tiles.end - tiles.begin);
  const int64_t tap_bytes = p.args.geometry.channels / kQuad * kQuadBytes;
  const int64_t panel_bytes = packed_panel_bytes(9 * p.args.geometry.channels);
  const int64_t count = tiles.end - tiles.begin, rounds = ceil_div(count, p.shape.round_tiles);
  transform_patches(p, tiles, w);
  for (int64_t first = panels.begin; first < panels.end; first += kGroupPanels) {
    const Range group{first, min_of(panels.end, first + kGroupPanels)};
    const int8_t* weight =
        int8_panels(p.expand, p.args.weight, p.args.geometry.out_channels,
                    9 * p.args.geometry.channels, first, group.end - first, kWeightSlot);
    find_start(p, group, w);
    for (int64_t c = 0; c < p.shape.chunks; ++c) {
      const Range chunk = chunk_at(p.shape, c);
      for (int64_t panel = group.begin; panel < group.end; ++panel)
        p.kernel.transform_weight({weight + (panel - first) * panel_bytes +
                                       chunk.begin * kWinogradBlock / kQuad * kQuadBytes,
                                   tap_bytes, chunk.end - chunk.begin,
                                   w.taps + (panel - first) * w.panel_stride, w.tap_stride});
      for (int64_t i = 0; i < rounds; ++i)
        multiply_round(p, tiles,
                       {tiles.begin + count * i / rounds, tiles.begin + count * (i + 1) / rounds},
                       chunk, c == 0, group.end - group.begin, w);
    }
    store_runs(p, tiles, group, w);
  }
}

struct Schedule {
  int64_t task_tiles, task_panels;
};

// Tasks of as many tiles as fit half of L2; too few of them are cut by panels instead, which costs
// another transform of the same patches, where cutting tiles would cost one of the weights.
Schedule schedule(const Shape& s, int64_t threads, Level level) {
  const int64_t patch_bytes = s.blocks * kWinogradBlock * 2 * kWinogradPositions;
  const int64_t least_tiles = level == Level::kAvx512Vnni ? kTaskTiles : s.round_tiles;
  const int64_t fitting = max_of(least_tiles, l2_bytes() / 2 / patch_bytes);
  int64_t tasks = ceil_div(s.tiles, fitting);
  if (s.tiles >= threads * kTilesPerTransform) tasks = round_up(tasks, threads);
  const int64_t task_tiles = ceil_div(s.tiles, tasks);
  const int64_t column_tasks = tasks >= threads ? 1 : ceil_div(threads, tasks);
  return {task_tiles, round_up(ceil_div(s.panels, column_tasks), kGroupPanels)};
}

}  // namespace

bool prefers_winograd(const ConvGeometry& g, Level level) {
  if (g.kernel_h != 3 || g.kernel_w != 3 || g.stride_h != 1 || g.stride_w != 1) return false;
  if (g.channels == 0 || g.channels % kWinogradBlock != 0) return false;
  const int64_t tiles = shape_of(g).tiles, pixels = g.batch * g.out_h * g.out_w;
  if (level == Level::kAvx2) return (tiles + kAvx2Overhead) * 16 < kAvx2Gain * pixels;
  return level == Level::kAvx512Vnni && g.channels >= kVnniChannels &&
         (tiles + kVnniOverhead) * 16 * kVnniLoss < 100 * pixels;
}

void conv2d_winograd(const ConvArgs& args) {
  const Shape shape = shape_of(args.geometry);
  if (shape.tiles == 0 || shape.panels == 0) return;
  const Level level = active_level();
  const Problem problem{args, shape, select_winograd_s16(level), select_epilogue(level),
                        select_expand_s4(level)};
  const Schedule cut = schedule(shape, num_threads(), level);
  const int64_t tile_tasks = ceil_div(shape.tiles, cut.task_tiles);
  const int64_t panel_tasks = ceil_div(shape.panels, cut.task_panels);
  parallel_for(tile_tasks * panel_tasks, [&](int64_t task) {
    const int64_t tile = task / panel_tasks * cut.task_tiles;
    const int64_t panel = task % panel_tasks * cut.task_panels;
    run_task(problem, {tile, min_of(shape.tiles, tile + cut.task_tiles)},
             {panel, min_of(shape.panels, panel + cut.task_panels)});
  });
}

}  // namespace tfq::cpu

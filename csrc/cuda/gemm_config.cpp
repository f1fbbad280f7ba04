#include "cuda/gemm_config.h"

#include <algorithm>
#include <stdexcept>

#include "common/check.h"
#include "common/math.h"

namespace tfq::cuda {
namespace {

constexpr int kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16};
constexpr int64_t kMaxRows = int64_t{1} << 31;

// The model's constants are from data sheets and instruction counts; none is measured on a card
// yet.
constexpr double kSharedBytesPerCycle = 128.0;
constexpr double kReservedSharedBytes = 1024.0;  // of each block, by the driver
constexpr double kEpilogueInstructions = 8.0;    // per output
constexpr double kLanes = 128.0;                 // instructions per cycle
constexpr double kReductionBytesPerCycle = 32.0;
constexpr double kFillCycles = 1500.0;  // first loads, last stores
constexpr double kClusterCycles = 400.0;  // its barrier, and the wait for the other block
constexpr int kWarpsToHideLatency = 8;
constexpr double kFewWarpsPenalty = 1.15;
constexpr int64_t kLeastDepth = 512;  // of a part: below, its begin and end take longer

// Of wgmma's rate: a warpgroup alone; two in turns, of twice the rows.
constexpr double kOneWarpgroup = 0.57;
constexpr double kPingPong = 0.9;
constexpr double kLanesInTurns = 64.0;  // the epilogue's, of one warpgroup beside the products

// Of a data centre's cards: twice the multiply-adds, and more bytes from L2.
bool is_data_centre(int arch) { return arch == 80 || arch == 90 || arch == 100; }

// Multiply-adds a cycle of a multiprocessor. mma.sync reaches about half of what wgmma does on
// Hopper, and a quarter of what 10.0 does with instructions that these kernels have not.
double multiply_rate(const Tile& tile, int arch) {
  if (tile.schedule == Schedule::kPingPong) return 4096.0 * kPingPong;
  if (tile.level == Level::kSm90) return 4096.0 * (tile.warps_m > 4 ? 1.0 : kOneWarpgroup);
  return is_data_centre(arch) ? 2048.0 : 1024.0;
}

// Bytes the multiplying warps read from shared memory for one k-block: mma.sync's warps their rows
// of A and of B, wgmma A once and B for every 64 rows.
double bytes_read(const Tile& tile) {
  if (tile.level == Level::kSm90)
    return (tile.block_m + tile.block_m / 64.0 * tile.block_n) * tile.block_k;
  return static_cast<double>(tile.warps_m * tile.warps_n) *
         (tile.block_m / tile.warps_m + tile.block_n / tile.warps_n) * tile.block_k;
}

// Bytes a block brings from L2 for one k-block: of B its share of the cluster's.
double bytes_copied(const Tile& tile) {
  return (tile.block_m + static_cast<double>(tile.block_n) / tile.cluster) * tile.block_k;
}

// Bytes a cycle from L2 to a multiprocessor.
double l2_rate(int arch) { return is_data_centre(arch) ? 46.0 : 16.0; }

int64_t tiles_of(const ProductProblem& p, const Tile& tile) {
  return ceil_div(p.m, tile.block_m) * ceil_div(p.n, tile.block_n);
}

double modelled_cycles(const ProductProblem& p, const Tile& tile, const DeviceFacts& device,
                       int splits) {
  const int warps = tile.warps_m * tile.warps_n;
  const double outputs = static_cast<double>(tile.block_m) * tile.block_n;
  const double multiply = outputs * tile.block_k / multiply_rate(tile, device.arch);
  const double shared = (bytes_read(tile) + tile.stage_bytes()) / kSharedBytesPerCycle;
  const double resident =
      device.shared_per_multiprocessor / (tile.shared_bytes() + kReservedSharedBytes);
  const bool few =
      tile.level == Level::kSm80 && static_cast<int>(resident) * warps < kWarpsToHideLatency;
  const double l2 = bytes_copied(tile) / l2_rate(device.arch);
  const double step = std::max({multiply, shared, l2}) * (few ? kFewWarpsPenalty : 1.0);
  const double reduction = splits > 1 ? 3 * 4 * outputs / kReductionBytesPerCycle : 0.0;
  const bool in_turns = tile.schedule == Schedule::kPingPong;
  const double products = static_cast<double>(ceil_div(ceil_div(p.k, tile.block_k), splits)) * step;
  const double finish =
      outputs * kEpilogueInstructions / (in_turns ? kLanesInTurns : kLanes) + reduction;
  // In turns the products of a part hide the end of the one before, or two parts take as long as one.
  const double part = in_turns ? std::max(products, (products + finish) / 2) : products + finish;
  const int at_once = std::max(device.multiprocessors / tile.cluster, 1);
  const int64_t rounds = ceil_div(clusters_of(p, tile) * splits, at_once);
  return static_cast<double>(rounds) * part + (in_turns ? finish : 0.0) + kFillCycles +
         (tile.cluster > 1 ? kClusterCycles : 0.0);
}

std::string why_not(const ProductProblem& p, const Tile& tile, const DeviceFacts& device,
                    int splits, bool forced) {
  if (device.arch < 80)
    return message("needs compute capability 8.0, the device has ", device.arch / 10, ".",
                   device.arch % 10);
  // B300: 0.16 POPS of integers were measured by others, a fraction of what bfloat16 reaches there.
  if (device.arch == 103)
    return "compute capability 10.3 multiplies integers slower than floats: convert with "
           "TfqConfig(activations='float')";
  if (tile.level == Level::kSm90 && !device.wgmma)
    return "needs compute capability 9.0 and a build for 90a";
  if (tile.level == Level::kSm90 && *p.not_copied) return p.not_copied;
  if (p.k % 16 != 0) return message("k must be a multiple of 16, got ", p.k);
  if (p.m >= kMaxRows || p.n >= kMaxRows || p.k >= kMaxRows)
    return message("m, n and k must be below 2^31, got ", p.m, ", ", p.n, ", ", p.k);
  if (tile.shared_bytes() > device.shared_per_block)
    return message("needs ", tile.shared_bytes(), " bytes of shared memory, a block has ",
                   device.shared_per_block);
  if (splits == 1) return "";
  const int64_t blocks = ceil_div(p.k, tile.block_k);
  if (blocks < splits)
    return message("k = ", p.k, " has ", blocks, " blocks for ", splits, " parts");
  if (split_workspace(p, tile, splits) > p.workspace)
    return message("needs ", split_workspace(p, tile, splits), " values of workspace, got ",
                   p.workspace);
  if (!forced && blocks / splits * tile.block_k < kLeastDepth)
    return message("parts of k would be shorter than ", kLeastDepth);
  return "";
}

// What the table has, or a candidate of 0 splits.
Candidate measured(const char* operation, const ProductProblem& p, const DeviceFacts& device,
                   const DispatchTable& table) {
  const auto entry = table.find({device.arch, device.multiprocessors, operation, p.m, p.n, p.k});
  if (entry == table.end()) return {};
  const MeasuredTile& found = entry->second;
  return {found.tile, found.splits, 0.0, found.microseconds,
          why_not(p, kTiles[found.tile], device, found.splits, true)};
}

}  // namespace

DispatchTable& dispatch_table() {
  static DispatchTable table;
  return table;
}

int64_t clusters_of(const ProductProblem& p, const Tile& tile) {
  return ceil_div(p.m, int64_t{tile.cluster} * tile.block_m) * ceil_div(p.n, tile.block_n);
}

int64_t split_workspace(const ProductProblem& p, const Tile& tile, int splits) {
  return splits == 1 ? 0 : tiles_of(p, tile) * (int64_t{tile.block_m} * tile.block_n + 1);
}

ProductChoice choose_product(const char* operation, const ProductProblem& problem,
                             const DeviceFacts& device, const DispatchTable& table, int forced_tile,
                             int forced_splits) {
  ProductChoice choice{-1, 0, {}};
  if (forced_tile < 0 && forced_splits == 0) {
    const Candidate best = measured(operation, problem, device, table);
    if (best.splits > 0) choice.candidates.push_back(best);
    if (best.splits > 0 && best.declined.empty()) return {best.tile, best.splits, {best}};
  }
  for (int tile = 0; tile < kTileCount; ++tile) {
    if (forced_tile >= 0 && tile != forced_tile) continue;
    for (const int splits : kSplits) {
      if (forced_splits > 0 && splits != forced_splits) continue;
      Candidate candidate{tile, splits, 0.0, 0.0,
                          why_not(problem, kTiles[tile], device, splits, forced_splits > 0)};
      if (candidate.declined.empty())
        candidate.cycles = modelled_cycles(problem, kTiles[tile], device, splits);
      choice.candidates.push_back(candidate);
    }
  }
  std::stable_sort(choice.candidates.begin(), choice.candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     if (a.declined.empty() != b.declined.empty()) return a.declined.empty();
                     return a.cycles < b.cycles;
                   });
  if (choice.candidates.empty() || !choice.candidates.front().declined.empty())
    throw std::invalid_argument(message(operation, ": no kernel for m=", problem.m,
                                        ", n=", problem.n, ", k=", problem.k,
                                        " on compute capability ", device.arch / 10, ".",
                                        device.arch % 10, ":\n", describe(choice)));
  choice.tile = choice.candidates.front().tile;
  choice.splits = choice.candidates.front().splits;
  return choice;
}

std::string declined_by_all_tiles() {
  std::string text = "; declined by";
  for (const Tile& tile : kTiles) text += message(&tile == kTiles ? " " : ", ", tile.name);
  return text;
}

std::string describe(const ProductChoice& choice) {
  std::string text;
  for (const Candidate& c : choice.candidates) {
    text += message(kTiles[c.tile].name, " k/", c.splits, ": ");
    if (!c.declined.empty()) text += "declined: " + c.declined;
    if (c.microseconds > 0)
      text += message(c.declined.empty() ? "" : "; ", c.microseconds, " us (table)");
    else if (c.declined.empty())
      text += message(static_cast<int64_t>(c.cycles), " cycles (model)");
    text += "\n";
  }
  return text;
}

}  // namespace tfq::cuda

// Which tile was measured to be the fastest for a product, by card: the data of tfq/ops/dispatch.json.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

namespace tfq::cuda {

// 10 * major + minor of the compute capability and multiprocessors of the card, operation, m, n, k.
using MeasuredProduct = std::tuple<int, int, std::string, int64_t, int64_t, int64_t>;

struct MeasuredTile {
  int tile;    // index into kTiles
  int splits;  // parts of k
  double microseconds;
};

using DispatchTable = std::map<MeasuredProduct, MeasuredTile>;

// The table that launches consult, empty at first. Not to be changed while another thread launches.
DispatchTable& dispatch_table();

}  // namespace tfq::cuda

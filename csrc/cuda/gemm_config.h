// Which tile computes an integer product, and in how many parts of k: a pure function of the
// problem, of facts about the device and of what was measured, built everywhere.
#pragma once

#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/dispatch_table.h"
#include "cuda/tile.h"

namespace tfq::cuda {

struct ProductProblem {
  int64_t m, n, k;
  int64_t workspace;            // int32 values for split-K: sums and counters
  const char* not_copied = "";  // why the copy engine cannot bring the rows of A; "" if it can
};

struct Candidate {
  int tile;              // index into kTiles
  int splits;            // parts of k
  double cycles;         // modelled time, of one multiprocessor; 0 if measured
  double microseconds;   // measured time, of the table; 0 if modelled
  std::string declined;  // why it cannot run; empty if it can
};

struct ProductChoice {
  int tile, splits;
  std::vector<Candidate> candidates;  // all that were compared
};

// What the table has for exactly this product on such a card, else (or if that cannot run) the
// candidate of least modelled time. Throws std::invalid_argument, with the reason of each tile, if
// none can run. tile >= 0 and splits > 0 restrict the choice, and leave the table out of it.
ProductChoice choose_product(const char* operation, const ProductProblem& problem,
                             const DeviceFacts& device, const DispatchTable& table, int tile = -1,
                             int splits = 0);

// Groups of `cluster` tiles, one below the other, that cover the outputs.
int64_t clusters_of(const ProductProblem& problem, const Tile& tile);

// int32 values of workspace a candidate needs.
int64_t split_workspace(const ProductProblem& problem, const Tile& tile, int splits);

// The end of an error about operands that no tile can take: the names of the tiles.
std::string declined_by_all_tiles();

// One line a candidate, the best first.
std::string describe(const ProductChoice& choice);

}  // namespace tfq::cuda

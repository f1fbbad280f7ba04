#include "overlap_host.h"

#include <algorithm>

namespace tfq::simt {
namespace {

constexpr unsigned char kUnfinished = 0xA5;

struct Piece {
  unsigned char* begin;
  std::vector<unsigned char> other;  // what the other view has there
};

std::vector<std::pair<unsigned char*, size_t>> unfinished;
std::vector<Piece> pieces;  // of the launch that runs
bool finished_view = true;  // of those who have waited

}  // namespace

void set_unfinished_memory(std::vector<std::pair<unsigned char*, size_t>> memory) {
  unfinished = std::move(memory);
}

Overlap::Overlap(bool overlaps) {
  if (!overlaps) return;
  for (const auto& [begin, bytes] : unfinished)
    pieces.push_back({begin, std::vector<unsigned char>(bytes, kUnfinished)});
}

std::string enter_view(bool waited) {
  if (waited == finished_view) return "";
  std::string error;
  for (Piece& piece : pieces) {
    std::swap_ranges(piece.other.begin(), piece.other.end(), piece.begin);
    if (waited && std::any_of(piece.other.begin(), piece.other.end(),
                              [](unsigned char byte) { return byte != kUnfinished; }))
      error = "memory of launches before was written without waiting for them";
  }
  finished_view = waited;
  return error;
}

Overlap::~Overlap() {
  enter_view(true);
  pieces.clear();
}

}  // namespace tfq::simt

// Launches that begin before those before them have ended (LaunchConfig::overlaps).
//
// A test names memory that earlier launches still write or read. Until a thread has waited for them it
// sees other bytes there, whatever others have done, and must not write them; so do the bulk copies it
// asks for.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace tfq::simt {

// Pieces of memory (begin, bytes), for all launches from now on; none: launches do not overlap.
void set_unfinished_memory(std::vector<std::pair<unsigned char*, size_t>> pieces);

// A launch, which may overlap.
class Overlap {
 public:
  explicit Overlap(bool overlaps);
  ~Overlap();  // memory is what those see who have waited
  Overlap(const Overlap&) = delete;
  Overlap& operator=(const Overlap&) = delete;
};

// A thread that has waited, or has not, goes on: what is wrong with what went on before, or "".
std::string enter_view(bool waited);

}  // namespace tfq::simt

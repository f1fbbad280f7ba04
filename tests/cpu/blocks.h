// Operands in memory of exactly their size, random values, and one call on every level.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "common/math.h"
#include "cpu/isa.h"
#include "fuzz.h"

namespace tfq::testing {

// Elements every operand lacks, where the program is to fail.
inline int64_t missing = 0;

// Values in a block of their own: of the heap, around which the sanitizer sees what compiled code touches, or
// at the end of a page before one that nothing may touch, which stops the instructions it does not know (tiles,
// masked vectors), too.
template <typename T>
struct Block {
  explicit Block(int64_t n, int64_t less = missing) : size(max_of(0, n - less)) {
    const auto bytes = static_cast<size_t>(size) * sizeof(T);
    if (toss()) {
      data = static_cast<T*>(std::malloc(bytes));
      if (data == nullptr) std::abort();
      return;
    }
    constexpr int64_t kPage = 4096;
    mapped_ = static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kPage) + kPage);
    void* memory =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    first_ = static_cast<char*>(memory);
    char* guard = first_ + mapped_ - kPage;
    if (mprotect(guard, kPage, PROT_NONE)) std::abort();
    data = reinterpret_cast<T*>(guard - bytes);
  }
  ~Block() {
    if (first_ == nullptr) {
      std::free(data);
    } else {
      munmap(first_, mapped_);
    }
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  int64_t size;
  T* data;

 private:
  char* first_ = nullptr;
  size_t mapped_ = 0;
};

template <typename T>
void fill(Block<T>& block, int64_t low, int64_t high) {
  for (int64_t i = 0; i < block.size; ++i) block.data[i] = static_cast<T>(pick(low, high));
}
inline float uniform(float scale) { return scale * static_cast<float>(pick(-1000, 1000)) / 1000.0f; }
inline void fill_uniform(Block<float>& block, float scale) {
  for (int64_t i = 0; i < block.size; ++i) block.data[i] = uniform(scale);
}

using Outputs = std::vector<std::vector<uint8_t>>;

// run(out), with the addresses of blocks of these sizes in bytes, on every level of this machine: the levels
// must agree in every byte. What the scalar one wrote.
template <typename Run>
Outputs on_every_level(const std::vector<int64_t>& sizes, const Run& run) {
  constexpr int kUnwritten = 0xA5;
  Outputs expected;
  for (int level = 0; level <= static_cast<int>(cpu::detected_level()); ++level) {
    cpu::set_max_level(static_cast<cpu::Level>(level));
    std::vector<void*> addresses;
    std::vector<std::unique_ptr<Block<uint8_t>>> blocks;
    for (const int64_t size : sizes) {
      blocks.push_back(std::make_unique<Block<uint8_t>>(size, 0));
      std::memset(blocks.back()->data, kUnwritten, static_cast<size_t>(size));
      addresses.push_back(blocks.back()->data);
    }
    run(addresses.data());
    Outputs written;
    for (const auto& block : blocks)
      written.emplace_back(block->data, block->data + block->size);
    if (level == 0) expected = written;
    CHECK(written == expected);
  }
  return expected;
}

template <typename T>
T value_at(const std::vector<uint8_t>& bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace tfq::testing

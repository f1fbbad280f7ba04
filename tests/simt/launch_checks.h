// Launches of small kernels under the shim: their errors, and every schedule.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

#include "cuda/simt.h"

namespace tfq::testing {

// What the launch reports; empty: nothing.
template <typename Args>
std::string launch_error(void (*kernel)(Args), const simt::LaunchConfig& config, const Args& args) {
  try {
    simt::launch(kernel, config, args);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& error, const char* text) {
  if (error.find(text) != std::string::npos) return true;
  std::fprintf(stderr, "expected '%s', got '%s'\n", text, error.c_str());
  return false;
}

inline void for_each_schedule(void (*check)()) {
  for (const auto order :
       {simt::Order::kForward, simt::Order::kReverse, simt::Order::kShuffled, simt::Order::kGreedy})
    for (const bool lazy : {false, true}) {
      simt::options() = {order, lazy, 5, 0};
      check();
    }
  simt::options() = {};
}

}  // namespace tfq::testing

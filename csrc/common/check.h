// Errors with values in them. C++ re-checks what could corrupt memory; Python names the arguments.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tfq {

// Concatenates the arguments into one message.
template <typename... Args>
std::string message(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace tfq

// TFQ_CHECK(condition, "gemm_s8: k must be positive, got ", k) throws std::invalid_argument
// (ValueError).
#define TFQ_CHECK(condition, ...)                               \
  do {                                                          \
    if (!(condition)) {                                         \
      throw std::invalid_argument(::tfq::message(__VA_ARGS__)); \
    }                                                           \
  } while (false)

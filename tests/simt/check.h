// CHECK(condition) counts and prints failures; finish() is main's return value.
#pragma once

#include <cstdio>

namespace tfq::testing {

inline int failures = 0, checks = 0;

inline void check(bool ok, const char* condition, const char* file, int line) {
  ++checks;
  if (ok) return;
  ++failures;
  if (failures <= 20) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, condition);
}

inline int finish(const char* name) {
  std::printf("%s: %d checks, %d failures\n", name, checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace tfq::testing

#define CHECK(condition) ::tfq::testing::check(condition, #condition, __FILE__, __LINE__)

// A list of native calls that runs again without Python: a model's kernels, captured once.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace tfq::bindings {

class Program {
 public:
  // Appends operation(arguments...). Addresses among the arguments must stay valid.
  template <typename... Parameters>
  void append(void (*operation)(Parameters...), std::decay_t<Parameters>... arguments) {
    calls_.push_back([operation, kept = std::make_tuple(std::move(arguments)...)] {
      std::apply(operation, kept);
    });
  }

  void run() const {
    for (const std::function<void()>& call : calls_) call();
  }

  size_t size() const { return calls_.size(); }

 private:
  std::vector<std::function<void()>> calls_;
};

// Defines the operation as a function of the module, and as a method of Program that appends it.
template <typename... Parameters>
void define_operation(pybind11::module_& module, pybind11::class_<Program>& program,
                      const char* name, void (*operation)(Parameters...)) {
  module.def(name, operation);
  program.def(name, [operation](Program& self, std::decay_t<Parameters>... arguments) {
    self.append(operation, std::move(arguments)...);
  });
}

}  // namespace tfq::bindings

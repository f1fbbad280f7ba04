#!/usr/bin/env bash
# Everything that needs a CUDA card, in parts of at most ten minutes:
#
#   bash bench/gpu.sh [build] [test] [sanitize] [bench]      (default: all, in this order)
#
# Needs nvcc, g++, cmake, ninja, pybind11 and a CUDA torch; nothing from the network. Results:
# bench/results/<card>/kernels-cuda.json and a table on the output.
set -uo pipefail
cd "$(dirname "$0")/.."
limit=600
failed=()

part() {
  local name=$1
  shift
  echo "== $name"
  timeout "$limit" "$@" || failed+=("$name")
}

build() {
  part build env TFQ_CUDA=ON TFQ_CUDA_ARCHS=native \
    python -m pip install --no-build-isolation --no-deps --no-index .
}

tests() { part test python -m pytest -q tests/gpu; }

sanitize() {
  local tool
  if ! command -v compute-sanitizer >/dev/null; then
    echo "== sanitize: compute-sanitizer is not installed; not run"
    return
  fi
  for tool in memcheck racecheck; do
    part "sanitize $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      python -m pytest -q tests/gpu/test_kernels.py -k "65-72-80 or 131-168 or conv and 7"
  done
}

bench() { part bench python bench/gpu.py; }

[ $# -gt 0 ] || set -- build test sanitize bench
for name in "$@"; do
  case $name in
    build) build ;;
    test) tests ;;
    sanitize) sanitize ;;
    bench) bench ;;
    *) echo "bench/gpu.sh: no part '$name'" && exit 2 ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi

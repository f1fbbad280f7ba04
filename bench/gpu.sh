#!/usr/bin/env bash
# Everything that needs a CUDA card, in parts of at most ten minutes:
#
#   bash bench/gpu.sh [build] [test] [sanitize] [bench] [sweep]      (default: all, in this order)
#
# Needs nvcc, g++, cmake, ninja, pybind11 and a CUDA torch; nothing from the network. Results are in
# bench/results/<card>/ (kernels-cuda.json, sweep.json, dispatch.json), and tables on the output. A part
# that ran out of time goes on where it was when it is called again; "sweep" ends in the package's own
# table of choices, tfq/ops/dispatch.json. Every script has --dry-run, which tries it on the CPU.
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

# Hopper's own instructions need 90a, which CMake's "native" is not.
archs() {
  local capability
  capability=$(python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  [ "$capability" = 90 ] && capability=90a
  echo "$capability"
}

build() {
  part build env TFQ_CUDA=ON TFQ_CUDA_ARCHS="$(archs)" \
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

sweep() { part sweep python bench/sweep.py --install; }

[ $# -gt 0 ] || set -- build test sanitize bench sweep
for name in "$@"; do
  case $name in
    build) build ;;
    test) tests ;;
    sanitize) sanitize ;;
    bench) bench ;;
    sweep) sweep ;;
    *) echo "bench/gpu.sh: no part '$name'" && exit 2 ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi

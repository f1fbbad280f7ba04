#!/usr/bin/env bash
# Everything that needs a CUDA card, in parts of at most ten minutes, or of TFQ_PART_SECONDS:
#
#   bash bench/gpu.sh [build] [test] [sanitize] [bench] [sweep] [unets] [ncu]   (default: all, in this order)
#   bash bench/gpu.sh dry        the scripts on the CPU, with tiny shapes: whether they run, not how fast
#
# Needs nvcc, g++, cmake, ninja, pybind11 and a CUDA torch; nothing from the network. Results are in
# bench/results/<card>/ (kernels-cuda.json, sweep.json, dispatch.json, unet-cuda.json), and tables on the
# output. A part that ran out of time goes on where it was when it is called again. "sweep" ends in the
# package's own table of choices, tfq/ops/dispatch.json: build again before "unets", which runs by it.
# Three runs of half an hour in all: "build test sanitize bench", "sweep build", "unets ncu". With a
# card for a quarter of an hour: a wheel built before, where no card is needed (PYTHON=python3.12
# TFQ_CUDA=ON TFQ_CUDA_ARCHS=90a-real bash .ci/wheel dist; 5 minutes on two cores), and
# "TFQ_PART_SECONDS=180 bash bench/gpu.sh test bench unets", then again what ran out of time.
set -uo pipefail
cd "$(dirname "$0")/.."
limit=${TFQ_PART_SECONDS:-600}
measuring=(--limit "$((limit * 9 / 10))") # the scripts stop by themselves, with their results written
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
      python -m pytest -q tests/gpu/test_kernels.py -k "65-72-80 or 131-168 or conv and 7 or attention and 77"
  done
}

bench() { part bench python bench/gpu.py "${measuring[@]}"; }

sweep() { part sweep python bench/sweep.py --install "${measuring[@]}"; }

unets() { part unets python bench/gpu_unet.py "${measuring[@]}"; }

# Why a kernel takes the time it takes: pipes, caches and stalls of some launches.
ncu_reports() {
  if ! command -v ncu >/dev/null; then
    echo "== ncu: ncu is not installed; not run"
    return
  fi
  local kind
  for kind in gemm conv attention; do
    part "ncu $kind" ncu --clock-control none --section SpeedOfLight --section WarpStateStats \
      --section MemoryWorkloadAnalysis --kernel-name "regex:${kind}.*_s8" --launch-skip 20 \
      --launch-count 2 python bench/gpu.py --only "$kind" --limit 30 --folder "$(mktemp -d)"
  done
}

dry() {
  local script
  for script in gpu sweep gpu_unet; do
    part "dry $script" python "bench/$script.py" --dry-run --seconds 0.001
  done
}

[ $# -gt 0 ] || set -- build test sanitize bench sweep build unets ncu
for name in "$@"; do
  case $name in
    build) build ;;
    test) tests ;;
    sanitize) sanitize ;;
    bench) bench ;;
    sweep) sweep ;;
    unets) unets ;;
    ncu) ncu_reports ;;
    dry) dry ;;
    *) echo "bench/gpu.sh: no part '$name'" && exit 2 ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi

#!/usr/bin/env bash
# Everything that needs a CUDA card, in parts of at most ten minutes, or of TFQ_PART_SECONDS:
#
#   bash bench/gpu.sh [build] [test] [sanitize] [bench] [sweep] [unets] [ncu]   (default: all, in this order)
#   bash bench/gpu.sh dry        the scripts on the CPU, with tiny shapes: whether they run, not how fast
#
# Needs nvcc, g++, cmake, ninja, pybind11 and a CUDA torch; nothing from the network. Results are in
# bench/results/<card>/ (kernels-cuda.json, sweep.json, dispatch.json, unet-cuda.json, ncu-*.txt), and
# tables on the output, with a verdict on each row (targets.py). A part that ran out of time goes on where it
# was when it is called again. "sweep" ends in the installed package's table of choices, by which "unets"
# runs, and in this checkout's, tfq/ops/dispatch.json, to be committed.
#
# Half an hour: "build test sanitize bench", "sweep", "unets ncu".
#
# A quarter of an hour, of which the start of a rented card may take two minutes. Before, without a card: a
# wheel (PYTHON=python3.12 TFQ_CUDA=ON TFQ_CUDA_ARCHS=90a-real bash .ci/wheel dist; 5 minutes on two cores).
# Then two commands on the card, of 9.5 minutes,
#   pip install --no-deps dist/*.whl
#   TFQ_PART_SECONDS=150 bash bench/gpu.sh test
#   TFQ_PART_SECONDS=75 bash bench/gpu.sh bench
#   TFQ_PART_SECONDS=330 TFQ_UNETS="--pair --only ddpm-cifar10:64,sd15:8" bash bench/gpu.sh unets
# and of 3.5:
#   TFQ_PART_SECONDS=100 bash bench/gpu.sh ncu sweep
# Another quarter of an hour, with the results of the first in place, goes on with bench and sweep, or is for
# TFQ_PART_SECONDS=600 TFQ_UNETS="--pair --only sdxl:2", most of which torch.compile takes.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python || command -v python3)}
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
  capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  [ "$capability" = 90 ] && capability=90a
  echo "$capability"
}

build() {
  part build env TFQ_CUDA=ON TFQ_CUDA_ARCHS="$(archs)" \
    "$python" -m pip install --no-build-isolation --no-deps --no-index .
}

# Of the installed package: this folder's has no kernels.
run_tests() {
  local name=$1
  shift
  part "$name" env PYTHONSAFEPATH=1 "$@" -m pytest -q tests/gpu "${selected[@]}"
}

tests() { selected=() && run_tests test "$python"; }

sanitize() {
  local tool
  if ! command -v compute-sanitizer >/dev/null; then
    echo "== sanitize: compute-sanitizer is not installed; not run"
    return
  fi
  selected=(-k "test_kernels and (65-72-80 or 131-168 or conv and 7 or attention and 77)")
  for tool in memcheck racecheck; do
    run_tests "sanitize $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$python"
  done
}

bench() { part bench "$python" bench/gpu.py "${measuring[@]}"; }

# By bench/card.py: where the results of this card are, and the installed package's table of choices.
paths() { mapfile -t paths < <("$python" bench/card.py); }

sweep() {
  part sweep "$python" bench/sweep.py --install "${measuring[@]}"
  paths
  [ "${paths[1]:-}" -ef tfq/ops/dispatch.json ] || cp "${paths[1]:-}" tfq/ops/dispatch.json
}

unets() {
  # shellcheck disable=SC2086  # several options
  part unets "$python" bench/gpu_unet.py "${measuring[@]}" ${TFQ_UNETS:-}
}

# Why a kernel takes the time it takes: tensor pipes, caches and stalls of two launches.
ncu_report() {
  local kind=$1 kernels=$2 row=$3
  part "ncu $kind" ncu --clock-control none --section SpeedOfLight --section ComputeWorkloadAnalysis \
    --section MemoryWorkloadAnalysis --section WarpStateStats --print-details all \
    --kernel-name "regex:$kernels" --launch-skip 20 --launch-count 2 --log-file "${paths[0]}/ncu-$kind.txt" \
    "$python" bench/gpu.py --only "$kind" --match "$row" --seconds 0.01 --folder "$(mktemp -d)"
  grep -iE "^  [a-z].*_|duration|throughput|tensor|SM busy" "${paths[0]}/ncu-$kind.txt"
}

ncu_reports() {
  if ! command -v ncu >/dev/null; then
    echo "== ncu: ncu is not installed; not run"
    return
  fi
  paths
  local limit=$((limit / 4))
  mkdir -p "${paths[0]}"
  ncu_report gemm 'gemm_s8' 8192x5120x640
  ncu_report conv 'conv2d_s8' '2x640@64->640'
  ncu_report attention 'attention_s8' 2x10x4096x4096x64
  ncu_report bandwidth 'group_norm|image_quantize' 'group_norm 2x320@128'
}

dry() {
  local script
  for script in gpu sweep gpu_unet; do
    part "dry $script" "$python" "bench/$script.py" --dry-run --seconds 0.001
  done
}

[ $# -gt 0 ] || set -- build test sanitize bench sweep unets ncu
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

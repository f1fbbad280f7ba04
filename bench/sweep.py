"""Every tile and split of the integer GEMM on a CUDA card, beside what the choice takes.

    python bench/sweep.py [--seconds 0.02] [--limit 540]

For each shape of bench/gpu.py each (tile, parts of k) that can run: bits against the chosen one's,
microseconds, TOPS, and the cycles the model gave it (csrc/cuda/gemm_config.cpp). The table shows what a
perfect choice would gain; the JSON is what the model's constants are to be fitted to. Shapes are taken in
a fixed order until --limit seconds have passed; the result says which were left out.
"""

import argparse
import json
import re
import sys
import time

import torch
from gpu import GEMMS, RESULTS, ROWS, interleaved, machine, on_card
from harness import print_table

from tfq import ops
from tfq._ext import _C
from tfq.ops import _cuda

sys.path.append(str(RESULTS.parent.parent / "tests"))
from operands import gemm_operands  # noqa: E402

ROTATED = 4  # copies of x: more than the L2 at the shapes whose time it decides


def device_facts():
    """DeviceFacts of csrc/cuda/device.h, of the current card."""
    card = torch.cuda.get_device_properties(0)
    return (
        10 * card.major + card.minor, card.multi_processor_count, card.shared_memory_per_block_optin,
        card.shared_memory_per_multiprocessor, card.major == 9,
    )  # fmt: skip


def candidates(description):
    """(tile, parts, modelled cycles) of each line of a choice that was not declined."""
    found = re.findall(r"^(\S+) k/(\d+): (\d+) cycles", description, re.MULTILINE)
    return [(tile, int(splits), int(cycles)) for tile, splits, cycles in found]


def sweep_shape(m, n, k, seconds):
    operands = on_card(gemm_operands(m, n, k))
    operands["out_dtype"] = torch.bfloat16
    xs = [torch.randint_like(operands["x"], 256) for _ in range(ROTATED)]
    xs[0] = operands.pop("x")
    tiles = _C.cuda_tiles()
    tile, splits, text = _C.cuda_choose_product(m, n, k, _cuda.WORKSPACE_VALUES, device_facts())
    expected = ops.gemm_s8(xs[0], **operands)

    def forced(choice):
        def call(i):
            _cuda.NO_CHOICE = choice
            return ops.gemm_s8(xs[i % ROTATED], **operands)

        return call

    calls, cycles = {}, {}
    for name, parts, modelled in candidates(text):
        calls[f"{name} k/{parts}"] = forced((tiles.index(name), parts))
        cycles[f"{name} k/{parts}"] = modelled
    wrong = [name for name, call in calls.items() if not torch.equal(call(0), expected)]
    times = interleaved(calls, seconds)
    return {
        "shape": [m, n, k], "chosen": f"{tile} k/{splits}", "wrong": wrong, "us": times,
        "cycles": cycles, "tops": {name: 2 * m * n * k / us * 1e-6 for name, us in times.items()},
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.02, help="for each tile and shape")
    parser.add_argument("--limit", type=float, default=540, help="seconds in all")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/sweep.py: torch sees no CUDA device; nothing is measured")
    end = time.monotonic() + options.limit
    before, rows, left_out = machine(), [], []
    for m in ROWS:
        for n, k in GEMMS:
            if time.monotonic() > end:
                left_out.append([m, n, k])
            else:
                rows.append(sweep_shape(m, n, k, options.seconds))
    folder = RESULTS / before["card"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    result = {"before": before, "after": machine(), "left_out": left_out, "rows": rows}
    (folder / "sweep.json").write_text(json.dumps(result, indent=1) + "\n")
    table = []
    for row in rows:
        best = min(row["us"], key=row["us"].get)
        chosen = row["us"][row["chosen"]]
        table.append(
            ["x".join(map(str, row["shape"])), row["chosen"], f"{chosen:.1f}", best,
             f"{row['tops'][best]:.0f}", f"{chosen / row['us'][best]:.2f}x"]
        )  # fmt: skip
    print_table(["shape", "chosen", "us", "best", "TOPS of best", "chosen / best"], table)
    wrong = [(row["shape"], row["wrong"]) for row in rows if row["wrong"]]
    sys.exit(f"wrong results: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()

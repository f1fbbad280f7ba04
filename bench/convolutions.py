"""Large 3x3 convolutions with the whole epilogue, against what the machine can multiply at most.

    python bench/convolutions.py                          # wall clock, all threads
    python bench/convolutions.py --threads 1 --clock cpu  # on a machine that is not quiet

The ceiling is measured in the same run (ceiling.cpp). Two rows a shape. *direct* is the convolution that
multiplies every tap: the shape is taken with 16 channels fewer, which no block of Winograd's 64 fits, and
its share is one of the ceiling. *chosen* is what the library runs at the shape itself: where that is
Winograd, GOP/s are those of the direct convolution it stands for, and may exceed the ceiling.

The epilogue: scale, zero-point, bias, temporal row, residual, float32 output. Random weights and
activations.
"""

import argparse
import statistics
import sys
import time

import ceiling
import machine
import torch
import unet_shapes as shapes
from harness import print_table
from kernel_operands import conv_case

from tfq import ops

# (shape, batch): 3x3, stride 1, of at least 2 GOP.
CASES = [
    (conv, batch)
    for group, batch in ((shapes.DDPM_CONVS, 4), (shapes.SD15_CONVS, 1))
    for conv in group
    if conv.kernel == 3 and conv.stride == 1 and conv.operations(batch) > 2e9
]
BLOCK_REST = 16  # channels fewer, for the direct kernel


def median_seconds(call, clock, seconds):
    """Median of the calls that fit into `seconds`, at least five; the first is not timed."""
    call()
    times, end = [], clock() + seconds
    while len(times) < 5 or clock() < end:
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times)


def measure(kind, conv, batch, clock, seconds, most):
    """The result row of one shape by one kind of kernel."""
    if kind == "direct":
        conv = conv._replace(channels=conv.channels - BLOCK_REST)
    operands, _ = conv_case(conv, batch)
    taken = median_seconds(lambda: ops.conv2d_s8(**operands), clock, seconds)
    rate = conv.operations(batch) / taken / 1e9
    return {
        "shape": str(conv), "batch": batch, "kernel": kind, "ms": taken * 1e3, "gop_per_s": rate,
        "share": rate / most,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--seconds", type=float, default=0.5, help="per row")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads > 1:
        sys.exit(f"--clock cpu adds up the threads: it needs --threads 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    facts = machine.facts()
    limits = ceiling.measure(args.threads)
    if facts["isa"] not in limits:
        sys.exit(f"ceiling.cpp has no loop for level {facts['isa']!r}, only for {sorted(limits)}")
    most = limits[facts["isa"]]
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    rows = [
        measure(kind, conv, batch, clock, args.seconds, most)
        for conv, batch in CASES
        for kind in ("direct", "chosen")
    ]
    print(
        f"{facts['cpu']}, {facts['isa']}, {args.threads} threads, {args.clock} clock, load "
        f"{facts['load']}; ceiling {most:.0f} GOP/s"
    )
    print_table(
        ("shape", "batch", "kernel", "ms", "GOP/s", "% of ceiling"),
        [
            (
                row["shape"], str(row["batch"]), row["kernel"], f"{row['ms']:.2f}",
                f"{row['gop_per_s']:.0f}", f"{100 * row['share']:.0f}",
            )
            for row in rows
        ],
    )  # fmt: skip
    direct = [row["share"] for row in rows if row["kernel"] == "direct"]
    print(
        f"direct kernel: {100 * min(direct):.0f} to {100 * max(direct):.0f} % of the ceiling, median "
        f"{100 * statistics.median(direct):.0f} %"
    )
    if not args.no_write:
        name = f"convolutions-t{args.threads}"
        results = {"arguments": vars(args), "ceiling": limits, "rows": rows}
        print("written:", machine.write_results(name, facts, results))


if __name__ == "__main__":
    main()

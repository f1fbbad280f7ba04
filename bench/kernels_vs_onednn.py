"""conv2d_s8 and gemm_s8 against the oneDNN INT8 operators of torch.

Both sides do the whole float epilogue in one call: scale, bias, temporal row, residual, float32
output. oneDNN gets what favours it: the row added to the bias beforehand, a residual it adds into
in place (conv) or as a fused operand (linear), weights packed for this very shape. Results are
compared before anything is timed. Weights and activations are random.
"""

import argparse
import sys

import harness
import machine
import torch
import unet_shapes as shapes
from kernel_operands import conv_case, linear_case

from tfq import ops, timing

# Both sum the same integers; oneDNN rounds scale, bias and residual in another order.
TOLERANCE = 1e-5
# Load average above which the machine is not ours alone.
BUSY = 0.5


def onednn_conv(operands, weight):
    """oneDNN's form of a conv, which overwrites its residual, and a fresh result to check."""
    (scale, _, zero_point), *_ = operands["qparams"].tolist()
    stride, padding = [operands["stride"]] * 2, [operands["padding"]] * 2
    bias = operands["bias"] + operands["temporal"][0]
    no_shift = torch.zeros(len(bias), dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(
        weight, operands["weight_scale"], scale, int(zero_point), stride, padding, [1, 1], 1,
        list(operands["x"].shape),
    )  # fmt: skip

    def run(residual):
        return torch.ops.onednn.qconv2d_pointwise.binary(
            operands["x"], scale, int(zero_point), packed, operands["weight_scale"], no_shift,
            residual, bias, stride, padding, [1, 1], 1, 1.0, 0, torch.float32, 1.0, 0, "sum", None,
            None, [], None,
        )  # fmt: skip

    accumulator = operands["residual"].clone()
    return lambda: run(accumulator), run(operands["residual"].clone())


def onednn_linear(operands, weight):
    """oneDNN's form of a linear layer, and its result."""
    (scale, _, zero_point), *_ = operands["qparams"].tolist()
    bias = operands["bias"] + operands["temporal"][0]
    no_shift = torch.zeros(len(bias), dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(weight, list(operands["x"].shape))

    def run():
        return torch.ops.onednn.qlinear_pointwise.binary(
            operands["x"], scale, int(zero_point), packed, operands["weight_scale"], no_shift,
            operands["residual"], bias, 1.0, 0, torch.float32, 1.0, 0, "add", 1.0, "none", [], "",
        )  # fmt: skip

    return run, run()


def compare(shape, batch, seconds):
    """Time one shape on both sides; returns the result row. Raises if they do not agree."""
    is_conv = isinstance(shape, shapes.Conv)
    operands, weight = (conv_case if is_conv else linear_case)(shape, batch)
    operation = ops.conv2d_s8 if is_conv else ops.gemm_s8
    theirs, their_result = (onednn_conv if is_conv else onednn_linear)(operands, weight)
    our_result = operation(**operands)
    error = float((our_result - their_result).abs().max() / our_result.abs().max())
    if error > TOLERANCE:
        raise RuntimeError(
            f"{shape} batch {batch}: results differ by {error:.2g} of the largest value"
        )
    timings = timing.interleave(
        {"tfq": lambda: operation(**operands), "onednn": theirs}, seconds=seconds
    )
    ratio = timing.paired_ratio(timings["onednn"], timings["tfq"])
    operations = shape.operations(batch)
    return {
        "shape": str(shape),
        "batch": batch,
        "count": shape.count,
        "gop": operations / 1e9,
        "tfq": timings["tfq"].to_dict() | {"gop_per_s": operations / timings["tfq"].median / 1e9},
        "onednn": timings["onednn"].to_dict()
        | {"gop_per_s": operations / timings["onednn"].median / 1e9},
        "speedup": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
        "relative_difference": error,
    }


def table_row(row):
    speedup = row["speedup"]
    return [
        row["shape"],
        str(row["batch"]),
        str(row["count"]),
        f"{row['tfq']['median_ms']:.3f}",
        f"{row['tfq']['gop_per_s']:.0f}",
        f"{row['onednn']['median_ms']:.3f}",
        f"{row['onednn']['gop_per_s']:.0f}",
        f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        f"{row['onednn']['best_ms'] / row['tfq']['best_ms']:.2f}",
    ]


def totals(rows, batch):
    """Milliseconds of all calls of one UNet evaluation on each side, by median and by best call."""
    chosen = [row for row in rows if row["batch"] == batch]
    return {
        f"{side}_{kind}": sum(row["count"] * row[side][kind] for row in chosen)
        for side in ("tfq", "onednn")
        for kind in ("median_ms", "best_ms")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape and batch")
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    facts = machine.facts()
    print(f"{facts['cpu']}, {facts['isa']}, {args.threads} threads, load {facts['load']}")
    if facts["load"] > BUSY:
        print("something else is running: medians include its time slices, look at the best calls")
    chosen = [s for s in shapes.SD15_CONVS + shapes.SD15_LINEARS if args.only in str(s)]
    if not chosen:
        sys.exit(f"no shape contains {args.only!r}")
    operands, _ = linear_case(shapes.SD15_LINEARS[0], 1)
    noise = harness.self_ratio(lambda: ops.gemm_s8(**operands), seconds=args.seconds)
    print(f"the same kernel against itself: {noise}")
    rows = [compare(shape, batch, args.seconds) for batch in args.batches for shape in chosen]
    header = [
        "SD1.5 shape",
        "batch",
        "calls",
        "tfq ms",
        "GOP/s",
        "oneDNN ms",
        "GOP/s",
        "speed-up",
        "of bests",
    ]
    harness.print_table(header, [table_row(row) for row in rows])
    sums = {batch: totals(rows, batch) for batch in args.batches}
    for batch, ms in sums.items():
        for kind in ("median", "best"):
            ours, theirs = ms[f"tfq_{kind}_ms"], ms[f"onednn_{kind}_ms"]
            print(
                f"all calls of a UNet, batch {batch}, {kind}: tfq {ours:.0f} ms, "
                f"oneDNN {theirs:.0f} ms, {theirs / ours:.2f}x"
            )
    if not args.no_write:
        results = {
            "model": "SD1.5 UNet shapes, random weights and activations",
            "noise": {"median": noise.median, "low": noise.low, "high": noise.high},
            "totals": sums,
            "shapes": rows,
        }
        print(machine.write_results("kernels", facts, results))


if __name__ == "__main__":
    main()

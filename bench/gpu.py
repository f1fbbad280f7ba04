"""Micro-benchmarks on a CUDA card: tfq's kernels against what torch offers, at UNet shapes.

    python bench/gpu.py [--seconds 0.2] [--only gemm,conv,bandwidth]

GEMM against torch._int_mm (int32 out, without the scaling it would need) and torch._scaled_mm in FP8;
convolution against cuDNN in bfloat16; activation kernels against the bandwidth of a copy, counting the
bytes that must move. Operands rotate through more than twice the L2 cache, values are random, times are
CUDA events; alternatives take turns. Every result of tfq is compared with the reference first where the
reference is affordable. Kernel names come from the profiler, clocks from nvidia-smi.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import torch
from harness import print_table

from tfq import ops
from tfq._version import __version__

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
from operands import (  # noqa: E402
    conv_operands,
    gemm_operands,
    group_norm_operands,
    packed_weight,
)

RESULTS = pathlib.Path(__file__).parent / "results"
# (n, k) of SDXL's and SD1.5's linear layers.
GEMMS = [
    (320, 320), (960, 320), (2560, 320), (320, 1280), (640, 640), (1920, 640), (5120, 640), (640, 2560),
    (1280, 1280), (3840, 1280), (10240, 1280), (1280, 5120),
]  # fmt: skip
ROWS = (512, 1024, 2048, 4096, 8192, 32768)
# Batch, channels, size, out channels: 3 x 3, stride 1, padding 1.
CONVS = [
    (2, 320, 128, 320), (2, 960, 128, 320), (2, 640, 64, 640), (2, 1280, 64, 1280), (2, 1280, 32, 1280),
    (2, 2560, 32, 1280), (2, 320, 64, 320), (2, 640, 32, 640), (2, 1280, 16, 1280), (2, 1280, 8, 1280),
    (8, 320, 64, 320), (64, 128, 32, 128), (64, 256, 16, 256),
]  # fmt: skip
ROTATED_BYTES = 256 << 20
MAX_COPIES = 16


def on_card(operands):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in operands.items()}


def copies_of(call_bytes):
    return max(2, min(MAX_COPIES, ROTATED_BYTES // max(call_bytes, 1)))


def interleaved(alternatives, seconds):
    """Median microseconds of each: name -> functions of a copy's index, events around batches."""
    medians = {name: [] for name in alternatives}
    for call in alternatives.values():
        for i in range(3):
            call(i)
    for _ in range(9):
        for name, call in alternatives.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call(0)
            end.record()
            end.synchronize()
            calls = max(3, min(200, int(seconds * 1e3 / 9 / max(start.elapsed_time(end), 1e-3))))
            start.record()
            for i in range(calls):
                call(i)
            end.record()
            end.synchronize()
            medians[name].append(start.elapsed_time(end) * 1e3 / calls)
    return {name: statistics.median(values) for name, values in medians.items()}


def kernel_names(call):
    """Names of the kernels a call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(0)
        torch.cuda.synchronize()
    return sorted({event.key[:120] for event in profile.key_averages()})


def attempt(function):
    """`function`, or None where this torch or card cannot run it."""
    try:
        function(0)
        torch.cuda.synchronize()
    except (RuntimeError, AttributeError) as error:
        print(f"not available: {str(error).splitlines()[0][:120]}")
        return None
    return function


def measure(kind, name, alternatives, seconds, operations=None, moved=None):
    alternatives = {k: f for k, f in alternatives.items() if f is not None}
    times = interleaved(alternatives, seconds)
    row = {"kind": kind, "name": name, "us": times}
    row["kernels"] = {k: kernel_names(f) for k, f in alternatives.items()}
    if operations:
        row["tops"] = {k: operations / us * 1e-6 for k, us in times.items()}
    if moved:
        row["gb_per_s"] = {"tfq": moved / times["tfq"] * 1e-3}
    return row


def gemm_row(m, n, k, seconds):
    operands = on_card(gemm_operands(m, n, k))
    operands["out_dtype"] = torch.bfloat16
    x = operands.pop("x")
    xs = [torch.randint_like(x, 256) for _ in range(copies_of(x.numel() + 2 * m * n))]
    signed = [(value.int() - 128).to(torch.int8) for value in xs]
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda").t()
    one = torch.ones((), device="cuda")
    halves = [value.float().to(torch.float8_e4m3fn) for value in signed]
    weight8 = weight.t().float().to(torch.float8_e4m3fn).t()
    alternatives = {
        "tfq": lambda i: ops.gemm_s8(xs[i % len(xs)], **operands),
        "_int_mm": attempt(lambda i: torch._int_mm(signed[i % len(xs)], weight)),
        "_scaled_mm fp8": attempt(
            lambda i: torch._scaled_mm(
                halves[i % len(xs)], weight8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
            )
        ),
    }
    return measure("gemm", f"{m}x{n}x{k}", alternatives, seconds, 2 * m * n * k)


def conv_row(batch, channels, size, n, seconds):
    operands = on_card(conv_operands((batch, channels, size, size, n, 3, 1, 1, 1)))
    operands["out_dtype"] = torch.bfloat16
    x = operands.pop("x")
    xs = [torch.randint_like(x, 256) for _ in range(copies_of(x.numel()))]
    floats = [value.bfloat16() for value in xs]
    weight = torch.randn(n, channels, 3, 3, device="cuda", dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)
    alternatives = {
        "tfq": lambda i: ops.conv2d_s8(xs[i % len(xs)], **operands),
        "cuDNN bf16": attempt(
            lambda i: torch.nn.functional.conv2d(floats[i % len(xs)], weight, padding=1)
        ),
    }
    operations = 2 * batch * size * size * n * channels * 9
    return measure("conv", f"{batch}x{channels}@{size}->{n}", alternatives, seconds, operations)


def bandwidth_rows(seconds):
    size = 256 << 20
    source, target = torch.randint(256, (2, size), dtype=torch.uint8, device="cuda")
    yield measure(
        "bandwidth", "copy", {"tfq": lambda i: target.copy_(source)}, seconds, moved=2 * size
    )
    for batch, channels, side in [(2, 320, 128), (2, 640, 64), (2, 1280, 32), (64, 128, 32)]:
        image = on_card(group_norm_operands((batch, channels, 0, side, side, 32), torch.bfloat16))
        _, qparams = ops.group_norm_silu_quantize(**image)
        values = image["x"].numel()
        call = lambda i, image=image, q=qparams: ops.group_norm_silu_quantize(**image, qparams=q)  # noqa: E731
        yield measure(
            "bandwidth",
            f"group_norm {batch}x{channels}@{side}",
            {"tfq": call},
            seconds,
            moved=3 * values,
        )
    for rows, channels in [(8192, 640), (2048, 1280)]:
        x = torch.randn(rows, channels, device="cuda", dtype=torch.bfloat16)
        wide = torch.randn(rows, 8 * channels, device="cuda", dtype=torch.bfloat16)
        affine = torch.ones(channels, device="cuda")
        calls = {
            "quantize": (lambda i, x=x: ops.quantize(x), 3 * x.numel()),
            "layer_norm": (
                lambda i, x=x, a=affine: ops.layer_norm_quantize(x, a, a),
                3 * x.numel(),
            ),
            "geglu": (lambda i, w=wide: ops.geglu_quantize(w), wide.numel() * 5 // 2),
        }
        for name, (call, moved) in calls.items():
            yield measure(
                "bandwidth", f"{name} {rows}x{channels}", {"tfq": call}, seconds, moved=moved
            )

    for shape in [(10240, 1280), (1280, 1280, 3, 3)]:
        for bits in (8, 4):
            weight = on_card(packed_weight(shape, bits == 4, dtype=torch.bfloat16))
            values = torch.Size(shape).numel()
            yield measure(
                "bandwidth",
                f"dequantize_weight int{bits} {'x'.join(map(str, shape))}",
                {"tfq": lambda i, w=weight: ops.dequantize_weight(**w)},
                seconds,
                moved=2 * values + values * bits // 8,
            )


def machine():
    query = "name,driver_version,clocks.sm,clocks.max.sm,power.draw,temperature.gpu"
    smi = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
    )
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        query: smi.stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tfq": __version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="for each alternative and shape")
    parser.add_argument("--only", default="gemm,conv,bandwidth")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py: torch sees no CUDA device; nothing is measured")
    before, rows = machine(), []
    if "bandwidth" in options.only:
        rows += bandwidth_rows(options.seconds)
    if "conv" in options.only:
        rows += [conv_row(*shape, options.seconds) for shape in CONVS]
    if "gemm" in options.only:
        rows += [gemm_row(m, n, k, options.seconds) for m in ROWS for n, k in GEMMS]
    folder = RESULTS / before["card"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    result = {"before": before, "after": machine(), "rows": rows}
    (folder / "kernels-cuda.json").write_text(json.dumps(result, indent=1) + "\n")
    table = []
    for row in rows:
        best = {k: v for k, v in row["us"].items() if k != "tfq"}
        ratio = f"{min(best.values()) / row['us']['tfq']:.2f}x" if best else ""
        rate = row.get("tops", row.get("gb_per_s", {})).get("tfq", 0)
        others = ", ".join(f"{k} {v:.1f}" for k, v in best.items())
        table.append(
            [row["kind"], row["name"], f"{row['us']['tfq']:.1f}", f"{rate:.0f}", others, ratio]
        )
    print_table(["kind", "shape", "tfq us", "TOPS or GB/s", "others us", "best other / tfq"], table)


if __name__ == "__main__":
    main()

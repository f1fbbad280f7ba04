"""Micro-benchmarks on a CUDA card: its ceilings, and tfq's kernels against what torch offers.

    python bench/gpu.py [--seconds 0.1] [--only ceiling,attention] [--match 2048] [--limit 480] [--dry-run]

Ceilings: a copy, bfloat16 at 8192^3, of random values and of zeros (the difference is the power limit),
and on Hopper wgmma by itself (wgmma_ceiling.cu). GEMM against torch._int_mm (int32 out, without the scaling
it would need) and torch._scaled_mm in FP8; convolution against cuDNN in bfloat16, and against a GEMM of its
m, n and k, which copies no pixel nine times (im2col); attention, with the quantisation of its operands,
against torch's in bfloat16, with each backend and with the one torch chooses; activation kernels against the
bandwidth of a copy, counting the bytes that must move. Operands rotate through more than twice the L2 cache,
values are random, times are CUDA events around CUDA graphs; alternatives take turns. Kernel names come from
the profiler, clocks from nvidia-smi. Each row is held to what targets.py says that it must reach. A run that
ends at --limit is continued by the next.
"""

import argparse
import json
import subprocess
import tempfile

import targets
import torch
from card import BENCH, begin
from harness import print_table
from torch.nn.attention import SDPBackend, sdpa_kernel

from tfq import ops

# By what they tell: what runs out of time is at the end.
ROWS = (2048, 8192, 512, 1024, 4096, 32768)
GEMMS, CONVS = list(targets.GEMM_TOPS), list(targets.CONV_TOPS)
NORMS = [(2, 320, 128), (2, 640, 64), (2, 1280, 32), (64, 128, 32)]
TOKENS = [(8192, 640), (2048, 1280)]
WEIGHTS = [(10240, 1280), (1280, 1280, 3, 3)]
# Batch, heads, tokens, tokens of the key, channels of a head: SDXL's, SD1.5's, DiT-XL's.
ATTENTIONS = [
    (2, 10, 4096, 4096, 64), (2, 20, 1024, 1024, 64), (2, 10, 4096, 77, 64), (2, 20, 1024, 77, 64),
    (8, 8, 4096, 4096, 40), (8, 8, 1024, 1024, 80), (8, 8, 256, 256, 160), (8, 8, 4096, 77, 40),
    (8, 16, 256, 256, 72), (2, 16, 4096, 4096, 128),
]  # fmt: skip
ATTENTION_BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
KINDS = ("ceiling", "bandwidth", "attention", "conv", "im2col", "gemm")
# What a dry run does in their place.
_DRY = {
    "gemms": [(32, 64)], "rows": (16,), "convs": [(1, 32, 6, 32)], "norms": [(1, 64, 4)],
    "tokens": [(16, 64)], "weights": [(32, 64), (32, 16, 3, 3)], "copy": 1 << 12, "square": 64,
    "attentions": [(1, 2, 20, 9, 16)],
}  # fmt: skip
_FULL = {
    "gemms": GEMMS, "rows": ROWS, "convs": CONVS, "norms": NORMS, "tokens": TOKENS, "weights": WEIGHTS,
    "copy": 256 << 20, "square": 8192, "attentions": ATTENTIONS,
}  # fmt: skip


class Bench:
    """The rows, by kind: generators of (name, function that measures it)."""

    def __init__(self, card, seconds, shapes):
        from operands import conv_operands, gemm_operands, group_norm_operands, packed_weight

        self.card, self.seconds, self.shapes = card, seconds, shapes
        self.conv_operands, self.gemm_operands = conv_operands, gemm_operands
        self.group_norm_operands, self.packed_weight = group_norm_operands, packed_weight

    def measure(self, kind, alternatives, operations=None, moved=None, shape=()):
        """A row: microseconds and kernels of each alternative, and the rate of what was done."""
        alternatives = {k: f for k, f in alternatives.items() if f is not None}
        clocks = {}
        times = self.card.interleaved(alternatives, self.seconds, clocks)
        row = {"kind": kind, "shape": list(shape), "us": times, "mhz": clocks}
        row["kernels"] = {k: self.card.kernel_names(f) for k, f in alternatives.items()}
        if operations:
            row["tops"] = {k: operations / us * 1e-6 for k, us in times.items()}
        if moved:
            row["gb_per_s"] = {k: moved / us * 1e-3 for k, us in times.items()}
        return row

    def random(self, *shape, dtype=torch.bfloat16):
        """Normal values on the card."""
        return torch.randn(shape, device=self.card.device).to(dtype)

    def bytes(self, shape, count):
        """`count` random uint8 tensors on the card."""
        return [
            torch.randint(256, shape, dtype=torch.uint8, device=self.card.device)
            for _ in range(count)
        ]

    def ceiling(self):
        size, side = self.shapes["copy"], self.shapes["square"]

        def copy():
            source, target = self.bytes((size,), 2)
            return self.measure(
                "ceiling", {"torch": lambda i: target.copy_(source)}, moved=2 * size
            )

        def square():
            a, b = self.random(side, side), self.random(side, side)
            zero = torch.zeros_like(a)
            return self.measure(
                "ceiling", {"random": lambda i: a @ b, "zeros": lambda i: zero @ zero}, 2 * side**3
            )

        yield "copy", copy
        yield f"bf16 {side}^3", square
        if not self.card.dry_run and self.card.facts()["arch"] == 90:
            yield "wgmma", self._wgmma

    def _wgmma(self):
        """Of wgmma_ceiling.cu; needs nvcc."""
        csrc = BENCH.parent / "csrc"
        with tempfile.TemporaryDirectory() as folder:
            program = f"{folder}/wgmma_ceiling"
            command = [
                "nvcc", "-std=c++17", "-O3", f"-I{csrc}", "-arch=sm_90a", '-DTFQ_CUDA_ARCHS="90a"',
                BENCH / "wgmma_ceiling.cu", csrc / "cuda" / "device.cpp", "-o", program,
            ]  # fmt: skip
            try:
                subprocess.run(command, check=True, capture_output=True)
                done = subprocess.run([program], check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise RuntimeError(
                    f"wgmma_ceiling: {getattr(error, 'stderr', '') or error}"
                ) from error
        return wgmma_row(done.stdout)

    def bandwidth(self):
        for batch, channels, side in self.shapes["norms"]:
            yield (
                f"group_norm {batch}x{channels}@{side}",
                (lambda shape=(batch, channels, 0, side, side, 32): self._group_norm(shape)),
            )
        for rows, channels in self.shapes["tokens"]:
            for name in ("quantize", "layer_norm", "geglu"):
                yield (
                    f"{name} {rows}x{channels}",
                    (
                        lambda name=name, rows=rows, channels=channels: self._tokens(
                            name, rows, channels
                        )
                    ),
                )
        for shape in self.shapes["weights"]:
            for bits in (8, 4):
                yield (
                    f"dequantize_weight int{bits} {'x'.join(map(str, shape))}",
                    (lambda shape=shape, bits=bits: self._weight(shape, bits)),
                )

    def _group_norm(self, shape):
        image = self.card.place(self.group_norm_operands(shape, torch.bfloat16))
        x = image.pop("x")
        xs = self._rotated(x, 3 * x.numel())
        _, qparams = ops.group_norm_silu_quantize(x, **image)
        return self._moved(
            lambda i: ops.group_norm_silu_quantize(xs[i % len(xs)], **image, qparams=qparams),
            3 * x.numel(),
        )

    def _tokens(self, name, rows, channels):
        x = self.random(rows, 8 * channels if name == "geglu" else channels)
        moved = x.numel() * 5 // 2 if name == "geglu" else 3 * x.numel()
        xs = self._rotated(x, moved)
        affine = torch.ones(channels, device=self.card.device)
        call = {
            "quantize": ops.quantize,
            "layer_norm": lambda x: ops.layer_norm_quantize(x, affine, affine),
            "geglu": ops.geglu_quantize,
        }[name]
        return self._moved(lambda i: call(xs[i % len(xs)]), moved)

    def _weight(self, shape, bits):
        weight = self.card.place(self.packed_weight(shape, bits == 4, dtype=torch.bfloat16))
        packed, values = weight.pop("packed"), torch.Size(shape).numel()
        moved = 2 * values + values * bits // 8
        copies = self._rotated(packed, moved)
        return self._moved(
            lambda i: ops.dequantize_weight(copies[i % len(copies)], **weight), moved
        )

    def _rotated(self, tensor, call_bytes):
        """The tensor and copies of it, of the same strides."""
        return [tensor, *(tensor.clone() for _ in range(self.card.copies_of(call_bytes) - 1))]

    def _moved(self, call, moved):
        return self.measure("bandwidth", {"tfq": call}, moved=moved)

    def attention(self):
        for shape in self.shapes["attentions"]:
            yield "x".join(map(str, shape)), lambda shape=shape: self._attention(*shape)

    def _attention(self, batch, heads, tokens, kv_tokens, head_size):
        width = heads * head_size
        copies = self.card.copies_of(4 * batch * (tokens + kv_tokens) * width)
        query = [self.random(batch, tokens, width) for _ in range(copies)]
        key, value = (
            [self.random(batch, kv_tokens, width) for _ in range(copies)] for _ in range(2)
        )

        def operands(i):
            return (
                x[i % copies].unflatten(-1, (heads, -1)).transpose(1, 2)
                for x in (query, key, value)
            )

        def torch_attention(i):
            return torch.nn.functional.scaled_dot_product_attention(*operands(i))

        def with_backend(backend):
            def call(i):
                with sdpa_kernel(backend):
                    return torch_attention(i)

            return self.card.attempt(call)

        alternatives = {
            "tfq": lambda i: ops.attention_s8(
                query[i % copies], key[i % copies], value[i % copies], heads
            ),
            "torch bf16": torch_attention,
            **{name: with_backend(backend) for name, backend in ATTENTION_BACKENDS.items()},
        }
        operations = 4 * batch * tokens * kv_tokens * width
        row = self.measure("attention", alternatives, operations)
        row["torch_chooses"] = SDPBackend(torch._fused_sdp_choice(*operands(0))).name
        return row

    def conv(self):
        for shape in self.shapes["convs"]:
            batch, channels, size, n = shape
            yield f"{batch}x{channels}@{size}->{n}", lambda shape=shape: self._conv(*shape)

    def _conv(self, batch, channels, size, n):
        operands = self.card.place(self.conv_operands((batch, channels, size, size, n, 3, 1, 1, 1)))
        operands["out_dtype"] = torch.bfloat16
        x = operands.pop("x")
        xs = [torch.randint_like(x, 256) for _ in range(self.card.copies_of(x.numel()))]
        floats = [value.bfloat16() for value in xs]
        weight = self.random(n, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        alternatives = {
            "tfq": lambda i: ops.conv2d_s8(xs[i % len(xs)], **operands),
            "cuDNN bf16": self.card.attempt(
                lambda i: torch.nn.functional.conv2d(floats[i % len(xs)], weight, padding=1)
            ),
        }
        operations = 2 * batch * size * size * n * channels * 9
        return self.measure("conv", alternatives, operations, shape=(batch, channels, size, n))

    def im2col(self):
        for shape in self.shapes["convs"]:
            batch, channels, size, n = shape
            yield f"{batch}x{channels}@{size}->{n}", lambda shape=shape: self._im2col(*shape)

    def _im2col(self, batch, channels, size, n):
        m, k = batch * size * size, 9 * channels
        conv = self.card.place(self.conv_operands((batch, channels, size, size, n, 3, 1, 1, 1)))
        gemm = self.card.place(self.gemm_operands(1, n, k))
        image, _ = conv.pop("x"), gemm.pop("x")
        images = [torch.randint_like(image, 256) for _ in range(self.card.copies_of(image.numel()))]
        matrices = self.bytes((m, k), self.card.copies_of(m * k))
        half = {"out_dtype": torch.bfloat16}
        alternatives = {
            "conv2d_s8": lambda i: ops.conv2d_s8(images[i % len(images)], **conv, **half),
            "gemm_s8": lambda i: ops.gemm_s8(matrices[i % len(matrices)], **gemm, **half),
        }
        return self.measure("im2col", alternatives, 2 * m * n * k, shape=(m, n, k))

    def gemm(self):
        for m in self.shapes["rows"]:
            for n, k in self.shapes["gemms"]:
                yield f"{m}x{n}x{k}", lambda m=m, n=n, k=k: self._gemm(m, n, k)

    def _gemm(self, m, n, k):
        operands = self.card.place(self.gemm_operands(m, n, k))
        operands["out_dtype"] = torch.bfloat16
        x = operands.pop("x")
        copies = self.card.copies_of(x.numel() + 2 * m * n)
        xs = [torch.randint_like(x, 256) for _ in range(copies)]
        signed = [(value.int() - 128).to(torch.int8) for value in xs]
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=self.card.device).t()
        one = torch.ones((), device=self.card.device)
        halves = [value.float().to(torch.float8_e4m3fn) for value in signed]
        weight8 = weight.t().float().to(torch.float8_e4m3fn).t()
        alternatives = {
            "tfq": lambda i: ops.gemm_s8(xs[i % copies], **operands),
            "_int_mm": self.card.attempt(lambda i: torch._int_mm(signed[i % copies], weight)),
            "_scaled_mm fp8": self.card.attempt(
                lambda i: torch._scaled_mm(
                    halves[i % copies], weight8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16
                )
            ),
        }
        return self.measure("gemm", alternatives, 2 * m * n * k, shape=(m, n, k))


def wgmma_row(lines):
    """The row of what wgmma_ceiling prints, the widest product of two warpgroups first."""
    found = [json.loads(line) for line in lines.splitlines()]
    found.sort(
        key=lambda one: (-one["n"], -one["warpgroups"], one["source"] != "SS", one["values"])
    )
    names = ["n={n} x{warpgroups} {source} {values}".format(**one) for one in found]
    row = {"kind": "ceiling", "kernels": {}}
    row["us"] = {name: 1e3 * one["ms"] for name, one in zip(names, found, strict=True)}
    for key in ("tops", "cycles", "mhz"):
        row[key] = {name: one[key] for name, one in zip(names, found, strict=True)}
    return row


def print_wgmma(row):
    """The ceiling of wgmma by width; 256 columns take 128 cycles at the full rate of a multiprocessor."""
    rows = []
    for name, cycles in row["cycles"].items():
        share = int(name.split()[0].removeprefix("n=")) / 2 / cycles
        rows.append(
            [name, f"{row['tops'][name]:.0f}", f"{cycles:.1f}", f"{100 * share:.0f} %",
             f"{row['mhz'][name]:.0f}"]
        )  # fmt: skip
    print_table(["wgmma 64 x n x 32", "TOPS", "cycles", "of full rate", "MHz"], rows)
    print(f"n=160: {targets.verdict(row)}\n")


def table_row(name, row):
    """Of the printed table; the first alternative is the one in question."""
    first, *others = row["us"]
    rate = row.get("tops", row.get("gb_per_s", {})).get(first, 0)
    best = min((row["us"][other] for other in others), default=None)
    return [
        row["kind"], name, f"{row['us'][first]:.1f}", f"{rate:.0f}",
        ", ".join(f"{other} {row['us'][other]:.1f}" for other in others),
        "" if best is None else f"{best / row['us'][first]:.2f}x", targets.verdict(row),
    ]  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.1, help="for each alternative and shape")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of rows")
    parser.add_argument("--match", default="", help="what is in the names of the rows to measure")
    options, card, results = begin("kernels-cuda", parser, arguments, limit=480)
    bench = Bench(card, options.seconds, _DRY if card.dry_run else _FULL)
    for kind in KINDS:
        if kind in options.only.split(","):
            for name, measure in getattr(bench, kind)():
                if options.match in name:
                    results.add(f"{kind} {name}", measure)
    targets.judge(results)
    header = ["kind", "shape", "us", "TOPS or GB/s", "others us", "best other / first", "must"]
    if (wgmma := results.rows.get("ceiling wgmma")) is not None:
        print_wgmma(wgmma)
    print_table(
        header,
        [table_row(name, row) for name, row in results.rows.items() if row is not wgmma],
    )
    print(targets.summary(results))
    results.finish()


if __name__ == "__main__":
    main()

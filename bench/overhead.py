"""Microseconds of Python around each native operation of a converted model: checks, allocation, dispatch.

    python bench/overhead.py

The native functions are replaced by one that does nothing, so that a call takes what lies beside its
kernels. A row is a kind of module: its time over the native operations it makes. A whole UNet's includes
diffusers' own code and the torch operators of its float layers; through tfq.graph it is what lies beside
the native programs, and for each of their calls the time of one that has its arguments read and no rows to
compute. Small sizes, on which the time does not depend; one thread; the quickest of many calls.
"""

import contextlib
import time

import machine
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from harness import print_table

import tfq
from tfq import attention, blocks, nn
from tfq._ext import _C
from tfq.ops import _recording
from tfq.shapes import example_inputs

NATIVE = (
    "gemm_s8", "conv2d_s8", "quantize", "group_norm_silu_quantize", "layer_norm_quantize",
    "geglu_quantize", "attention_s8", "resnet_block", "temporal_gather",
)  # fmt: skip
KINDS = (
    nn.Linear, attention.Attention, attention.BasicTransformerBlock,
    attention.Transformer2DModel, blocks.ResnetBlock2D, blocks.Downsample2D, blocks.Upsample2D,
)  # fmt: skip
REPETITIONS = 300
CALLS = 1000


@contextlib.contextmanager
def no_kernels():
    """Native functions that do nothing but count themselves, in the list given."""
    originals, calls = {name: getattr(_C, name) for name in NATIVE}, []
    for name in NATIVE:
        setattr(_C, name, lambda *arguments: calls.append(None))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(_C, name, original)


@contextlib.contextmanager
def recorded(kinds):
    """Appends (module, positional, keyword arguments) of each call of these classes to the list given."""
    originals, calls = {kind: kind.forward for kind in kinds}, []

    def recording(original):
        def forward(module, *positional, **keywords):
            calls.append((module, positional, keywords))
            return original(module, *positional, **keywords)

        return forward

    for kind, original in originals.items():
        kind.forward = recording(original)
    try:
        yield calls
    finally:
        for kind, original in originals.items():
            kind.forward = original


def models():
    """Converted UNets, small, that hold every kind of module, with inputs."""
    sizes = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1}
    torch.manual_seed(0)
    with_text = UNet2DConditionModel(
        **sizes, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip
    images = UNet2DModel(
        **sizes, down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
    )  # fmt: skip
    for unet in (with_text, images):
        inputs = example_inputs(unet.eval(), 1, torch.Generator().manual_seed(0))
        yield tfq.convert(unet, tfq.TfqConfig(precision="uniform"), calibration=[inputs]), inputs


def best_seconds(call):
    """Least time of a call."""
    best = float("inf")
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


class LastProduct:
    """In the place of the kernels: the arguments of the last product."""

    def gemm_s8(self, *arguments):
        self.arguments = arguments


def program_call_seconds(layer):
    """Seconds of a call in a native program, beside its kernel."""
    product, program = LastProduct(), _C.Program()
    qparams = torch.tensor([[1.0, 1.0, 0.0]])
    x = torch.zeros(1, layer.in_features, dtype=torch.uint8)
    with _recording.through(product):
        layer.token_product(x, qparams)
    x_address, _, *rest = product.arguments
    for _ in range(CALLS):
        program.gemm_s8(x_address, 0, *rest)
    return best_seconds(program.run) / CALLS


def graph_row(unet, inputs, layer):
    """The row of a UNet through tfq.graph."""
    tfq.graph(unet)(**inputs)
    (captured,) = unet.forward.captured.values()
    replay = captured.replay
    programs = [s.__self__ for s in replay.steps if hasattr(s, "__self__")]
    replay.steps = [s for s in replay.steps if not hasattr(s, "__self__")]
    calls = sum(map(len, programs))
    seconds = best_seconds(lambda: unet(**inputs)) + calls * program_call_seconds(layer)
    return (f"{type(unet).__name__}, graph", calls), seconds


@torch.no_grad()
def measure():
    """Rows (kind of module, native operations of a call, seconds of a call)."""
    rows = {}
    for unet, inputs in models():
        with recorded(KINDS) as calls:
            unet(**inputs)
        layer = next(m for m in unet.modules() if isinstance(m, nn.Linear))
        calls.append((layer, (torch.randn(1, 16, layer.in_features),), {}))
        with no_kernels() as native:
            for module, positional, keywords in calls:
                native.clear()
                module(*positional, **keywords)
                key = (type(module).__name__, len(native))
                if native and key not in rows:
                    rows[key] = best_seconds(lambda: module(*positional, **keywords))  # noqa: B023
            native.clear()
            unet(**inputs)
            key = (type(unet).__name__, len(native))
            rows[key] = best_seconds(lambda: unet(**inputs))  # noqa: B023
        key, seconds = graph_row(unet, inputs, layer)
        rows[key] = seconds
    return [(kind, count, seconds) for (kind, count), seconds in rows.items()]


def main():
    torch.set_num_threads(1)
    facts = machine.facts()
    rows = measure()
    print(f"{facts['cpu']}, Python {facts['python']}, torch {facts['versions']['torch']}")
    print_table(
        ("module", "operations", "us", "us an operation"),
        [
            (kind, str(count), f"{seconds * 1e6:.1f}", f"{seconds * 1e6 / count:.1f}")
            for kind, count, seconds in rows
        ],
    )
    results = [
        {"module": kind, "operations": count, "us": seconds * 1e6} for kind, count, seconds in rows
    ]
    print("written:", machine.write_results("overhead", facts, results))


if __name__ == "__main__":
    main()

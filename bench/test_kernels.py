"""Every operation of tfq.ops over UNet shapes: ``pytest bench --benchmark-only``.

Weights and activations are random. Rates are of the median call: GOP/s of the integer product (a
multiplication and an addition count as two), GB/s of bytes that have to be read and written once.
``--benchmark-json=FILE`` keeps everything; compare two files with pytest-benchmark's own command.
"""

import pytest
import torch
import unet_shapes as shapes
from kernel_operands import as_four_bit, conv_case, linear_case, random_images

from tfq import ops
from tfq._ext import _C

SD15, DDPM = ("sd15", 1), ("ddpm_cifar", 4)  # model and batch


def cases(*groups):
    """pytest parameters (shape, batch) with an id that says model, batch and shape."""
    return [
        pytest.param(shape, batch, id=f"{model}-b{batch}-{label(shape)}")
        for (model, batch), group in groups
        for shape in group
    ]


def label(shape):
    return str(shape) if hasattr(shape, "operations") else "x".join(map(str, shape))


def measure(benchmark, call, *, operations=0, moved_bytes=0):
    """Run the benchmark and add its rate to ``extra_info``."""
    benchmark.extra_info.update(
        data="random weights and activations", isa=_C.isa(), threads=torch.get_num_threads()
    )
    benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    if operations:
        benchmark.extra_info["gop_per_s"] = round(operations / seconds / 1e9, 1)
    if moved_bytes:
        benchmark.extra_info["gb_per_s"] = round(moved_bytes / seconds / 1e9, 2)


@pytest.mark.benchmark(group="conv2d_s8")
@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize(
    "shape, batch", cases((SD15, shapes.SD15_CONVS), (DDPM, shapes.DDPM_CONVS))
)
def test_conv2d_s8(benchmark, shape, batch, weight_bits):
    operands, weight = conv_case(shape, batch)
    if weight_bits == 4:
        operands = as_four_bit(operands, weight)
    measure(benchmark, lambda: ops.conv2d_s8(**operands), operations=shape.operations(batch))


@pytest.mark.benchmark(group="gemm_s8")
@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize(
    "shape, batch", cases((SD15, shapes.SD15_LINEARS), (DDPM, shapes.DDPM_LINEARS))
)
def test_gemm_s8(benchmark, shape, batch, weight_bits):
    operands, weight = linear_case(shape, batch)
    if weight_bits == 4:
        operands = as_four_bit(operands, weight)
    measure(benchmark, lambda: ops.gemm_s8(**operands), operations=shape.operations(batch))


@pytest.mark.benchmark(group="attention_s8")
@pytest.mark.parametrize(
    "shape, batch", cases((SD15, shapes.SD15_ATTENTIONS), (DDPM, shapes.DDPM_ATTENTIONS))
)
def test_attention_s8(benchmark, shape, batch):
    heads, tokens, kv_tokens, head_size = shape
    query = torch.randn(batch, tokens, heads * head_size)
    key, value = torch.randn(2, batch, kv_tokens, heads * head_size)
    measure(
        benchmark,
        lambda: ops.attention_s8(query, key, value, heads),
        operations=4 * batch * heads * tokens * kv_tokens * head_size,
    )


@pytest.mark.benchmark(group="dequantize_weight")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("shape", [(320, 320, 3, 3), (1280, 1280, 3, 3), (10240, 1280)], ids=label)
def test_dequantize_weight(benchmark, shape, weight_bits, dtype):
    n, options = shape[0], {}
    if weight_bits == 4:
        options["zero_point"] = torch.randint(0, 16, (n,), dtype=torch.uint8)
        values = torch.randint(0, 16, shape, dtype=torch.uint8)
        packed, _ = ops.pack_weight_s4(values, options["zero_point"])
    else:
        packed, _ = ops.pack_weight(torch.randint(-127, 128, shape, dtype=torch.int8))
    scale = torch.rand(n)
    measure(
        benchmark,
        lambda: ops.dequantize_weight(packed, scale, shape, dtype=dtype, **options),
        moved_bytes=torch.Size(shape).numel() * (dtype.itemsize + weight_bits / 8),
    )


@pytest.mark.benchmark(group="group_norm_silu_quantize")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape, batch", cases((SD15, shapes.SD15_NORMS), (DDPM, shapes.DDPM_NORMS))
)
def test_group_norm_silu_quantize(benchmark, shape, batch, dtype):
    channels, channels2, size = shape
    total = channels + channels2
    x = random_images(batch, channels, size, dtype)
    x2 = random_images(batch, channels2, size, dtype) if channels2 else None
    weight, bias = torch.ones(total), torch.zeros(total)
    measure(
        benchmark,
        lambda: ops.group_norm_silu_quantize(x, 32, weight, bias, x2=x2),
        moved_bytes=batch * total * size**2 * (dtype.itemsize + 1),
    )


@pytest.mark.benchmark(group="layer_norm_quantize")
@pytest.mark.parametrize("shape, batch", cases((SD15, shapes.SD15_LAYER_NORMS)))
def test_layer_norm_quantize(benchmark, shape, batch):
    tokens, channels = shape
    x, weight, bias = torch.randn(batch, *shape), torch.ones(channels), torch.zeros(channels)
    measure(benchmark, lambda: ops.layer_norm_quantize(x, weight, bias), moved_bytes=x.numel() * 5)


@pytest.mark.benchmark(group="geglu_quantize")
@pytest.mark.parametrize("shape, batch", cases((SD15, shapes.SD15_GEGLUS)))
def test_geglu_quantize(benchmark, shape, batch):
    tokens, channels = shape
    x = torch.randn(batch, tokens, 2 * channels)
    measure(benchmark, lambda: ops.geglu_quantize(x), moved_bytes=x.numel() * 4 + x.numel() // 2)


@pytest.mark.benchmark(group="quantize")
@pytest.mark.parametrize("ranges", ["static", "dynamic"])
@pytest.mark.parametrize(
    "shape, batch", cases((SD15, shapes.SD15_NORMS[:1]), (DDPM, shapes.DDPM_NORMS[:1]))
)
def test_quantize(benchmark, shape, batch, ranges):
    x = random_images(batch, shape[0], shape[2], torch.float32)
    qparams = torch.tensor([[0.02, 50.0, 128.0]]) if ranges == "static" else None
    measure(benchmark, lambda: ops.quantize(x, qparams), moved_bytes=x.numel() * 5)


@pytest.mark.benchmark(group="temporal_gather")
@pytest.mark.parametrize("batch", [1, 4])
def test_temporal_gather(benchmark, batch):
    table = torch.randn(50, 22 * 1280)
    rows = torch.arange(batch)
    moved = batch * table.shape[1] * 8
    measure(benchmark, lambda: ops.temporal_gather(table, rows), moved_bytes=moved)


@pytest.mark.benchmark(group="temporal_gather")
@pytest.mark.parametrize("batch", [1, 4])
def test_temporal_gather_of_a_quantized_table(benchmark, batch):
    table = torch.randint(0, 256, (50, 22 * 1280), dtype=torch.uint8)
    options = {"qparams": torch.rand(50, 22, 2), "offsets": torch.arange(23) * 1280}
    rows = torch.arange(batch)
    moved = batch * table.shape[1] * 5
    measure(benchmark, lambda: ops.temporal_gather(table, rows, **options), moved_bytes=moved)

"""tfq.ops on a card against the reference on the CPU, bit for bit; streams, threads, graphs."""

import functools
import threading

import pytest
import torch
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    layer_norm_operands,
    packed_weight,
    quantized_table_operands,
    random_qparams,
    weight_operands_s4,
)
from tolerance import assert_quantized_close, assert_same_bits

from tfq import ops, reference
from tfq._ext import _C
from tfq.nn import Linear
from tfq.ops import _cuda, _dispatch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [
    (1, 8, 16),
    (65, 72, 80),
    (131, 168, 400),
    (300, 328, 1040),
    (4096, 640, 640),
    (128, 1280, 11520),
]
CONVS = [
    (2, 32, 7, 9, 72, 3, 1, 1, 1),
    (1, 48, 8, 7, 40, 3, 2, (0, 1, 0, 1), 1),
    (3, 32, 4, 5, 40, 3, 1, 1, 2),
    (1, 16, 3, 3, 24, 5, 1, 2, 1),
    (1, 16, 1, 1, 8, 3, 1, 1, 1),  # one first tap: a box of one pixel
    (3, 32, 5, 9, 24, (4, 8), 1, (2, 4), 1),  # 32 taps
    (1, 16, 130, 130, 40, 3, 8, 1, 1),  # the largest stride
    (2, 320, 64, 64, 320, 3, 1, 1, 1),
    (2, 1280, 8, 8, 1280, 3, 1, 1, 1),
]


ATTENTIONS = [
    (2, 3, 140, 77, 40),
    (1, 2, 4096, 4096, 64),
    (2, 8, 1024, 1000, 80),
    (1, 1, 129, 65, 128),
    (2, 8, 256, 256, 160),
    (1, 1, 20, 66, 256),
    (2, 2, 5, 64, 8),
]


def to_float(operands):
    """float16, which the CPU's kernel does not read, as float32."""
    return {
        name: value.float()
        if isinstance(value, torch.Tensor) and value.dtype is torch.float16
        else value
        for name, value in operands.items()
    }


def to_card(operands):
    return {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in operands.items()
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gemm(shape):
    operands = gemm_operands(*shape)
    assert_same_bits(ops.gemm_s8(**to_card(operands)).cpu(), reference.gemm_s8(**operands))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", _C.cuda_tiles())
def test_every_tile(tile, splits):
    if "x128_" in tile and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the card has no wgmma")
    shapes = [*SHAPES[1:4], (3000, 1928, 1040)]
    products = [
        {"operation": "gemm_s8", **dict(zip("mnk", shape, strict=True)), "tile": tile,
         "splits": splits, "us": 1.0}
        for shape in shapes
    ]  # fmt: skip
    with _dispatch.installed([{**_dispatch.card_of("cuda"), "products": products}]):
        for shape in shapes:
            if shape[2] < 128 * splits:
                continue
            operands = gemm_operands(*shape)
            expected, on_card = reference.gemm_s8(**operands), to_card(operands)
            for _ in range(3):
                assert_same_bits(ops.gemm_s8(**on_card).cpu(), expected, f"{tile} {shape}")


def test_products_that_follow_each_other():
    """Each reads what the one before wrote, into memory that the one before that has read."""
    operands = gemm_operands(512, 256, 256)
    operands.update(out_dtype=torch.uint8, out_qparams=operands["qparams"])
    on_card = to_card(operands)
    for _ in range(20):
        operands["x"] = reference.gemm_s8(**operands)
        on_card["x"] = ops.gemm_s8(**on_card)
    assert_same_bits(on_card["x"].cpu(), operands["x"])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_keeps_the_layout_of_the_kernels(bits):
    layer = Linear.from_float(torch.nn.Linear(320, 640), "linear", bits=bits)
    saved = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(70, 320)
    expected = layer(x)
    layer.to("cuda")
    assert_same_bits(layer(x.cuda()).cpu(), expected)
    assert layer.weight_packed.shape == (640, 320) and not _cuda._weights.get(layer.weight_packed)
    for name, value in layer.state_dict().items():
        assert_same_bits(value.cpu(), saved[name], name)
    assert_same_bits(layer.cpu()(x), expected)


@pytest.mark.parametrize("out_dtype", [*FLOATS, torch.uint8], ids=str)
@pytest.mark.parametrize("residual", FLOATS, ids=str)
def test_epilogue(out_dtype, residual):
    operands = gemm_operands(78, 168, 64)
    operands.update(qparams=random_qparams(6), out_dtype=out_dtype, out_qparams=random_qparams(6))
    operands.update(temporal=torch.randn(5, 168), temporal_rows=torch.tensor([4, 1]))
    operands["residual"] = torch.randn(78, 168).to(residual)
    assert_same_bits(ops.gemm_s8(**to_card(operands)).cpu(), reference.gemm_s8(**operands))
    if out_dtype is torch.uint8:
        return
    operands["return_quantized"] = True
    pairs = zip(ops.gemm_s8(**to_card(operands)), reference.gemm_s8(**operands), strict=True)
    for actual, expected in pairs:
        assert_same_bits(actual.cpu(), expected)


@pytest.mark.parametrize("activation", ["silu", "geglu"])
def test_activation(activation):
    operands = gemm_operands(300, 336, 64)
    operands["weight_scale"] *= 0.2
    operands.update(activation=activation, out_dtype=torch.uint8, out_qparams=random_qparams(1))
    assert_quantized_close(ops.gemm_s8(**to_card(operands)).cpu(), reference.gemm_s8(**operands))


def test_weights_of_4_bits():
    operands = gemm_operands(300, 328, 1040) | weight_operands_s4((328, 1040))
    assert_same_bits(ops.gemm_s8(**to_card(operands)).cpu(), reference.gemm_s8(**operands))


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (40, 107), (640, 2560), (24, 13, 3, 3)], ids=str)
def test_dequantize_weight(shape, four_bits):
    for dtype in FLOATS:
        operands = packed_weight(shape, four_bits, dtype=dtype)
        expected = reference.dequantize_weight(**operands)
        actual = ops.dequantize_weight(**to_card(operands))
        assert_same_bits(actual.cpu(), expected, str(dtype))
        assert actual.stride() == expected.stride()


def test_two_sources():
    operands = conv_operands((2, 80, 9, 7, 72, 3, 1, 1, 1))
    expected = reference.conv2d_s8(**operands)
    halves = [
        half.contiguous(memory_format=torch.channels_last)
        for half in operands.pop("x").split((32, 48), dim=1)
    ]
    actual = ops.conv2d_s8(**to_card({"x": halves[0], "x2": halves[1], **operands}))
    assert_same_bits(actual.cpu(), expected)


def test_a_row_outside_the_table_is_nan():
    table = quantized_table_operands(4, [5, 300], [3, 0])
    assert_same_bits(
        ops.temporal_gather(**to_card(table)).cpu(), reference.temporal_gather(**table)
    )
    on_card = to_card({**table, "rows": torch.tensor([4, -1])})
    assert bool(ops.temporal_gather(**on_card).isnan().all())
    operands = to_card(gemm_operands(6, 8, 16))
    rows = {"temporal": torch.zeros(3, 8), "temporal_rows": torch.tensor([2, 3])}
    y = ops.gemm_s8(**operands, **to_card(rows))
    assert bool(y[3:].isnan().all()) and not bool(y[:3].isnan().any())


@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_conv(shape):
    operands = conv_operands(shape)
    assert_same_bits(ops.conv2d_s8(**to_card(operands)).cpu(), reference.conv2d_s8(**operands))


@pytest.mark.parametrize("tile", _C.cuda_tiles())
def test_every_tile_of_convolutions(tile):
    """Those of wgmma too, whose copy engine gathers taps."""
    if "x128_" in tile and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the card has no wgmma")
    for shape in CONVS:
        operands, expected = conv_case(shape)
        n, kernel = expected.shape[1], shape[5]
        taps = kernel * kernel if isinstance(kernel, int) else kernel[0] * kernel[1]
        product = {
            "operation": "conv2d_s8", "m": expected.numel() // n, "n": n, "k": taps * shape[1],
            "tile": tile, "splits": 1, "us": 1.0,
        }  # fmt: skip
        with _dispatch.installed([{**_dispatch.card_of("cuda"), "products": [product]}]):
            actual = ops.conv2d_s8(**to_card(operands)).cpu()
        assert_same_bits(actual, expected, f"{tile} {shape}")


@functools.cache
def conv_case(shape):
    """Operands on the CPU, and what the reference makes of them."""
    operands = conv_operands(shape)
    return operands, reference.conv2d_s8(**operands)


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes(seed):
    torch.manual_seed(seed)
    m, n, k = (int(torch.randint(1, high, ())) for high in (600, 60, 80))
    operands = gemm_operands(m, 8 * n, 16 * k)
    assert_same_bits(ops.gemm_s8(**to_card(operands)).cpu(), reference.gemm_s8(**operands))


def test_activations():
    image = group_norm_operands((2, 320, 640, 16, 16, 32), torch.bfloat16)
    expected, qparams = reference.group_norm_silu_quantize(**image)
    q, _ = ops.group_norm_silu_quantize(**to_card(image), qparams=qparams.cuda())
    assert_quantized_close(q.cpu(), expected)
    tokens = layer_norm_operands(300, 1280, torch.bfloat16)
    expected, qparams = reference.layer_norm_quantize(**tokens)
    assert_quantized_close(
        ops.layer_norm_quantize(**to_card(tokens), qparams=qparams.cuda())[0].cpu(), expected
    )
    x = torch.randn(300, 2560)
    expected, qparams = reference.geglu_quantize(x)
    assert_quantized_close(ops.geglu_quantize(x.cuda(), qparams=qparams.cuda())[0].cpu(), expected)
    for actual, wanted in zip(ops.quantize(x.cuda()), reference.quantize(x), strict=True):
        assert_same_bits(actual.cpu(), wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", ATTENTIONS, ids=str)
def test_attention(shape, dtype):
    operands = attention_operands(*shape, dtype)
    expected = ops.attention_s8(**to_float(operands), out_dtype=torch.float32).to(dtype)
    assert_same_bits(ops.attention_s8(**to_card(operands)).cpu(), expected)


def test_graph_of_attention_reads_new_inputs():
    operands = attention_operands(2, 3, 70, 77, 40)
    on_card = to_card(operands)
    graph, out = captured(lambda: ops.attention_s8(**on_card))
    operands["key"] = torch.randn_like(operands["key"])
    on_card["key"].copy_(operands["key"])
    graph.replay()
    assert_same_bits(out.cpu(), ops.attention_s8(**operands))


def on_two_streams(call):
    """What 20 calls returned on each of two streams, by threads that begin at the same time."""
    results = []

    def work():
        with torch.cuda.stream(torch.cuda.Stream()):
            mine = [call() for _ in range(20)]
            torch.cuda.current_stream().synchronize()
            results.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(2)]
    torch.cuda.synchronize()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    return results


def test_other_stream_and_thread():
    """The first call of one of them makes what the other reads too."""
    operands = gemm_operands(128, 1280, 11520)  # split along k
    expected, on_card = reference.gemm_s8(**operands), to_card(operands)
    for result in on_two_streams(lambda: ops.gemm_s8(**on_card)):
        assert_same_bits(result.cpu(), expected)


def test_a_layer_on_two_streams():
    layer = Linear.from_float(torch.nn.Linear(2560, 5120), "linear")
    x = torch.randn(70, 2560)
    expected = layer(x)
    layer, x = layer.to("cuda"), x.cuda()
    for result in on_two_streams(lambda: layer(x)):
        assert_same_bits(result.cpu(), expected)


def captured(call):
    """A graph of `call`, and its output; an ordinary call first makes what is made on first use."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()  # the weight's layout and the workspace are made here
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = call()
    return graph, out


def test_graph_capture_reads_new_inputs():
    operands = gemm_operands(256, 640, 640)
    on_card = to_card(operands)
    graph, out = captured(lambda: ops.gemm_s8(**on_card))
    operands["x"] = torch.randint(0, 256, (256, 640), dtype=torch.uint8)
    on_card["x"].copy_(operands["x"])
    graph.replay()
    assert_same_bits(out.cpu(), reference.gemm_s8(**operands))


def test_one_graph_serves_every_row():
    operands = gemm_operands(256, 640, 640)
    operands.update(temporal=torch.randn(9, 640), temporal_rows=torch.tensor([0, 0]))
    on_card = to_card(operands)
    graph, out = captured(lambda: ops.gemm_s8(**on_card))
    for rows in ([3, 8], [7, 0]):
        operands["temporal_rows"] = torch.tensor(rows)
        on_card["temporal_rows"].copy_(operands["temporal_rows"])
        graph.replay()
        assert_same_bits(out.cpu(), reference.gemm_s8(**operands), str(rows))


def test_workspace_is_left_zero():
    ops.gemm_s8(**to_card(gemm_operands(128, 1280, 11520)))
    torch.cuda.synchronize()
    assert all(not bool(workspace.any()) for workspace in _cuda._workspaces.values())

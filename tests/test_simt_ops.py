"""tfq.ops by way of its CUDA half: Python's part of a launch over the host build of the kernels.

CPU tensors stand for CUDA tensors; what is not covered is torch's CUDA allocator and streams.
"""

import pytest
import simt_native
import torch
from diffusers import DDIMScheduler
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    layer_norm_operands,
    packed_weight,
    quantized_table_operands,
    random_images,
    random_qparams,
    weight_operands_s4,
)
from tolerance import (
    MIN_BACKEND_SNR,
    assert_attention_close,
    assert_quantized_close,
    assert_same_bits,
    assert_signal_to_noise,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import tfq
from tfq import ops, reference
from tfq.attention import Attention, dot_products
from tfq.ops import _checks, _cuda, activations, attention, products, weights


class Counted:
    """A module one of whose functions leaves its calls in a list."""

    def __init__(self, module, name, calls):
        self.module, self.name, self.calls = module, name, calls

    def __getattr__(self, name):
        if name == self.name:
            self.calls.append(name)
        return getattr(self.module, name)


@pytest.fixture
def on_cuda(simt, monkeypatch):
    simt.schedule(simt_native.GREEDY, lazy=True)
    monkeypatch.setattr(_cuda, "_C", simt.native)
    monkeypatch.setattr(_cuda, "_launch", lambda device: (0, 0))
    monkeypatch.setattr(_cuda, "_workspaces", {})
    monkeypatch.setattr(_cuda, "WORKSPACE_VALUES", 1 << 20)
    for module in (products, activations, attention, weights):
        monkeypatch.setattr(module, "native", lambda operation, x, **_: _cuda.Kernels(x.device))
    for module in (_checks, products):
        monkeypatch.setattr(module, "has_cuda_kernels", lambda tensor: True)
    yield simt.native
    simt.schedule()


def test_products(on_cuda):
    operands = gemm_operands(70, 72, 1040)
    operands.update(residual=torch.randn(70, 72), temporal=torch.randn(2, 72))
    assert_same_bits(ops.gemm_s8(**operands), reference.gemm_s8(**operands))
    assert on_cuda.counters()["last_kernel"].startswith("gemm_s8_")
    operands = conv_operands((2, 32, 7, 9, 72, 3, 2, 1, 2))
    operands["out_dtype"] = torch.bfloat16
    assert_same_bits(ops.conv2d_s8(**operands), reference.conv2d_s8(**operands))


def test_images_are_enlarged_on_hopper(on_cuda):
    operands = conv_operands((1, 128, 8, 8, 160, 3, 1, 1, 2))
    on_cuda.set_device(*simt_native.HOPPER)
    on_cuda.reset_counters()
    try:
        assert_same_bits(ops.conv2d_s8(**operands), reference.conv2d_s8(**operands))
    finally:
        on_cuda.set_device(*simt_native.DEVICE)
    counters = on_cuda.counters()
    assert counters["launches"] == 2 and counters["last_kernel"].endswith("_sm90")


def test_weights_of_4_bits(on_cuda):
    operands = gemm_operands(70, 72, 80) | weight_operands_s4((72, 80))
    assert_same_bits(ops.gemm_s8(**operands), reference.gemm_s8(**operands))
    operands["weight_zero_point"][3] ^= 1  # another weight: not the one that was kept
    assert_same_bits(ops.gemm_s8(**operands), reference.gemm_s8(**operands))
    operands = conv_operands((2, 32, 7, 9, 72, 3, 2, 1, 2)) | weight_operands_s4((72, 32, 3, 3))
    assert_same_bits(ops.conv2d_s8(**operands), reference.conv2d_s8(**operands))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16], ids=str)
def test_epilogues_of_cuda_alone(on_cuda, out_dtype):
    operands = conv_operands((2, 48, 5, 6, 40, 3, 1, 1, 1))
    residual = random_images(2, 40, 5, 6, out_dtype)
    operands.update(out_dtype=out_dtype, residual=residual, out_qparams=random_qparams(2))
    halves = [
        half.contiguous(memory_format=torch.channels_last)
        for half in operands.pop("x").split((16, 32), dim=1)
    ]
    operands.update(x=halves[0], x2=halves[1], return_quantized=True)
    pairs = zip(ops.conv2d_s8(**operands), reference.conv2d_s8(**operands), strict=True)
    for actual, expected in pairs:
        assert_same_bits(actual, expected)
        assert actual.is_contiguous(memory_format=torch.channels_last)
    operands = gemm_operands(6, 16, 64) | {"activation": "geglu", "out_dtype": torch.uint8}
    operands["out_qparams"] = random_qparams(1)
    assert_quantized_close(ops.gemm_s8(**operands), reference.gemm_s8(**operands))


@pytest.mark.parametrize("name, shape", [("residual", (6, 8)), ("temporal", (1, 16))])
def test_geglu_has_neither_residual_nor_temporal(on_cuda, name, shape):
    operands = gemm_operands(6, 16, 64) | {"activation": "geglu", name: torch.randn(shape)}
    with pytest.raises(ValueError, match=f"and n a multiple of 4; got n=16 with {name}"):
        ops.gemm_s8(**operands)


def test_geglu_is_gemm_s8s(on_cuda):
    operands = conv_operands((1, 16, 3, 3, 8, 1, 1, 0, 1)) | {"activation": "geglu"}
    with pytest.raises(ValueError, match="conv2d_s8: activation='geglu' is for gemm_s8"):
        ops.conv2d_s8(**operands)


def test_sources_must_match(on_cuda):
    operands = conv_operands((1, 16, 3, 3, 8, 1, 1, 0, 1)) | {"x2": random_images(1, 16, 3, 4)}
    with pytest.raises(ValueError, match=r"x2 \(1, 16, 3, 4\) does not match x \(1, 16, 3, 3\)"):
        ops.conv2d_s8(**operands)


def test_activations(on_cuda):
    x = torch.randn(6, 64)
    for actual, expected in zip(ops.quantize(x), reference.quantize(x), strict=True):
        assert_same_bits(actual, expected)
    image = group_norm_operands((2, 32, 16, 5, 7, 8))
    expected, qparams = reference.group_norm_silu_quantize(**image)
    actual, _ = ops.group_norm_silu_quantize(**image, qparams=qparams)
    assert_quantized_close(actual, expected)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    ops.group_norm_silu_quantize(**image)
    tokens = layer_norm_operands(5, 320)
    expected, qparams = reference.layer_norm_quantize(**tokens)
    assert_quantized_close(ops.layer_norm_quantize(**tokens, qparams=qparams)[0], expected)
    expected, qparams = reference.geglu_quantize(x)
    assert_quantized_close(ops.geglu_quantize(x, qparams=qparams)[0], expected)
    rows = torch.tensor([5, 0])
    assert_same_bits(ops.temporal_gather(x, rows), x[rows])
    table = quantized_table_operands(4, [5, 0, 3], [3, 0, 3])
    assert_same_bits(ops.temporal_gather(**table), reference.temporal_gather(**table))
    half = torch.randn(6, 64).half()
    assert_same_bits(ops.quantize(half)[0], reference.quantize(half)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention(on_cuda, dtype):
    operands = attention_operands(2, 3, 70, 77, 40, dtype)
    y = ops.attention_s8(**operands, scale=0.2)
    assert on_cuda.counters()["last_kernel"] == "attention_s8_d48_sm80"
    assert y.dtype is dtype and y.shape == operands["query"].shape
    expected = reference.attention_s8(**operands, scale=0.2)
    assert_attention_close(y, expected, operands["value"])
    on_cuda.reset_counters()
    ops.attention_s8(**(operands | {"query": operands["query"][:, :0]}))
    assert on_cuda.counters()["launches"] == 0


def test_types_of_attention(on_cuda):
    with pytest.raises(
        TypeError,
        match="attention_s8: out_dtype must be torch.float32 or torch.bfloat16 or torch.float16, got",
    ):
        ops.attention_s8(**attention_operands(1, 1, 2, 2, 8), out_dtype=torch.uint8)


@pytest.mark.parametrize("name, wanted", [("int8", True), ("auto", False), ("float", False)])
def test_attention_of_a_converted_unet_is_float_unless_asked_for(request, name, wanted):
    unets = pytest.importorskip("unets")
    unet = unets.build("cross", sample_size=8, cross_attention_dim=32)
    tfq.convert(unet, tfq.TfqConfig(precision="uniform", attention=name))
    kwargs = unets.inputs(unet, (1, 501))
    expected = unets.run(unet, kwargs)
    called = []
    native = request.getfixturevalue("on_cuda")
    request.getfixturevalue("monkeypatch").setattr(
        _cuda, "_C", Counted(native, "cuda_attention_s8", called)
    )
    assert_signal_to_noise(unets.run(unet, kwargs), expected, MIN_BACKEND_SNR[torch.float32])
    attentions = [m for m in unet.modules() if type(m) is Attention]
    assert len(called) == (len(attentions) if wanted else 0) and attentions


@pytest.mark.parametrize("head_size, exists", [(8, True), (12, False), (256, True), (264, False)])
def test_heads_without_a_kernel_stay_float(head_size, exists):
    config = tfq.TfqConfig(attention="int8")
    assert dot_products(config, torch.float32, head_size)["integers_on_cuda"] is exists


# Ranges that are dynamic, and static ones of rows; weights of 8 and 4 bits; a uint8 table of features.
@pytest.mark.parametrize(
    "name, config",
    [
        ("attention", {}),
        ("cross", {"weights": "int4"}),
        ("attention", {"temporal": "fold"}),
        ("attention", {"temporal": "cache"}),
        ("cross", {"activations": "float", "weights": "int4"}),
    ],
    ids=str,
)
def test_converted_unets_run_on_the_cuda_kernels(request, name, config):
    unets = pytest.importorskip("unets")
    sizes = {"sample_size": 8, **({"cross_attention_dim": 32} if name == "cross" else {})}
    unet = unets.build(name, **sizes)
    steps = {"scheduler": DDIMScheduler(), "num_inference_steps": 2} if "temporal" in config else {}
    tfq.convert(unet, tfq.TfqConfig(precision="uniform", **config), **steps)
    kwargs = unets.inputs(unet, (1, 501))
    expected = unets.run(unet, kwargs)
    native = request.getfixturevalue("on_cuda")
    native.reset_counters()
    actual = unets.run(unet, kwargs)
    assert native.counters()["launches"] >= 50
    assert_signal_to_noise(actual, expected, MIN_BACKEND_SNR[torch.float32])


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("shape", [(40, 70), (24, 13, 3, 3)], ids=str)
def test_dequantize_weight(on_cuda, shape, four_bits):
    on_cuda.reset_counters()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        operands = packed_weight(shape, four_bits, dtype=dtype)
        actual, expected = (
            ops.dequantize_weight(**operands),
            reference.dequantize_weight(**operands),
        )
        assert_same_bits(actual, expected, str(dtype))
        assert actual.stride() == expected.stride()
    assert on_cuda.counters()["launches"] == 3


def test_geglu_of_weights_of_4_bits_and_of_changed_operands(on_cuda):
    operands = gemm_operands(6, 32, 64) | weight_operands_s4((32, 64))
    operands.update(activation="geglu", out_dtype=torch.uint8, out_qparams=random_qparams(1))
    assert_quantized_close(ops.gemm_s8(**operands), reference.gemm_s8(**operands))
    operands["bias"] += 3  # in place: what was interleaved is another
    assert_quantized_close(ops.gemm_s8(**operands), reference.gemm_s8(**operands))


def test_feed_forward_has_geglu_in_its_epilogue(on_cuda, monkeypatch):
    """The gates of a transformer block come out of its first product, and are quantized from there."""
    seen = []
    product = _cuda.Kernels.gemm_s8

    def watched(self, x, rows, n, k, weight, zero_point, epilogue):
        seen.append((n, epilogue[12]))
        product(self, x, rows, n, k, weight, zero_point, epilogue)

    unets = pytest.importorskip("unets")
    monkeypatch.setattr(_cuda.Kernels, "gemm_s8", watched)
    monkeypatch.setattr(_cuda.Kernels, "geglu_quantize", None)  # must not be called
    unet = unets.build("cross", sample_size=8, cross_attention_dim=32)
    tfq.convert(unet, tfq.TfqConfig(precision="uniform"))
    unets.run(unet, unets.inputs(unet, (1, 501)))
    gated = [n for n, activation in seen if activation == products.ACTIVATION_CODES["geglu"]]
    widths = [m.ff.net[0].proj.out_features for m in unet.modules() if hasattr(m, "ff")]
    assert sorted(gated) == sorted(widths) and widths


def test_weight_is_laid_out_once_until_it_changes(on_cuda, monkeypatch):
    packed = gemm_operands(1, 40, 16)["weight"]
    first = _cuda.cached_device_weight(packed)
    assert _cuda.cached_device_weight(packed) is first
    packed.zero_()
    assert not bool(_cuda.cached_device_weight(packed).any())


def test_kept_weights_go_with_the_weight():
    packed = gemm_operands(1, 40, 16)["weight"]
    before = len(_cuda._weights)
    _cuda.cached_device_weight(packed)
    assert len(_cuda._weights) == before + 1
    del packed
    assert len(_cuda._weights) == before


def test_cuda_tensor_in_a_build_without_cuda_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(_checks, "HAS_CUDA", False)
    monkeypatch.setattr(_checks, "KERNEL_DEVICES", "'cpu'")
    with FakeTensorMode():
        x = torch.empty(2, 16, dtype=torch.uint8, device="cuda")
        with pytest.raises(
            NotImplementedError,
            match="gemm_s8: x is on 'cuda:0', but this build of tfq has native kernels for 'cpu' "
            "only; build tfq where nvcc is, with `TFQ_CUDA=ON pip install .`",
        ):
            _checks.require("gemm_s8", "x", x, (torch.uint8,))


def test_operands_must_share_a_device(monkeypatch):
    monkeypatch.setattr(_checks, "HAS_CUDA", True)
    with FakeTensorMode():
        x, bias = torch.empty(2, device="cuda"), torch.empty(2)
        with pytest.raises(
            ValueError, match="gemm_s8: bias must be on the device of x, 'cuda:0', got 'cpu'"
        ):
            _checks.native("gemm_s8", x, weight=x, bias=bias)
        with pytest.raises(ValueError, match="key must be on the device of query, 'cuda:0'"):
            _checks.native("attention_s8", x, first="query", value=x, key=bias)

"""Weights on a card lie as its kernels read them, and nowhere else: what is saved is made of that again.

The card is the host build of its kernels, its tensors are the CPU's (see test_simt_ops.py).
"""

import copy
import pickle

import pytest
import torch
from operands import gemm_operands, weight_operands_s4
from tolerance import assert_same_bits
from torch import nn

from tfq import layouts, reference
from tfq.nn import Conv2d, Linear, ShortcutConv2d
from tfq.ops import _checks, _cuda, activations, products, weights

SHAPES = [(72, 70), (16, 64), (40, 130), (24, 13, 3, 3), (320, 32, 1, 1)]


@pytest.fixture
def on_card(simt, monkeypatch):
    """A function that says whether the CUDA kernels are in use; they are."""
    state = {"here": True}
    monkeypatch.setattr(_cuda, "_C", simt.native)
    monkeypatch.setattr(_cuda, "_launch", lambda device: (0, 0))
    monkeypatch.setattr(_cuda, "_workspaces", {})
    monkeypatch.setattr(_cuda, "WORKSPACE_VALUES", 1 << 20)
    native = _checks.native
    for module in (products, activations, weights):
        monkeypatch.setattr(
            module, "native",
            lambda operation, x, **others: (
                _cuda.Kernels(x.device) if state["here"] else native(operation, x, **others)
            ),
        )  # fmt: skip
    for module in (_checks, products):
        monkeypatch.setattr(module, "has_cuda_kernels", lambda tensor: state["here"])
    yield lambda here: state.update(here=here)


def packed_of(shape, four_bits, geglu=False):
    n = shape[0]
    if four_bits:
        operands = weight_operands_s4(shape)
        return operands["weight"], operands["weight_zero_point"], n if geglu else 0
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    return reference.pack_weight(weight)[0], None, n if geglu else 0


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("geglu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_saved_layout_is_made_of_the_kernels(shape, geglu, four_bits):
    packed, zero_point, rows = packed_of(shape, four_bits, geglu)
    device = _cuda.device_weight(packed, zero_point, rows)
    assert device.dim() == (3 if geglu else 2)
    assert_same_bits(layouts.saved_weight(device, zero_point, shape), packed)
    assert layouts.saved_weight(packed, zero_point, shape) is packed


def layers(bits):
    yield Linear.from_float(nn.Linear(80, 40), "linear", bits=bits), (torch.randn(5, 80),)
    yield (
        Conv2d.from_float(nn.Conv2d(16, 24, 3, padding=1), "conv", bits=bits),
        (torch.randn(2, 16, 5, 6),),
    )
    yield (
        ShortcutConv2d.from_float(nn.Conv2d(48, 24, 1), (16, 32), "shortcut", bits=bits),
        (torch.randn(2, 16, 5, 6), torch.randn(2, 32, 5, 6)),
    )


def buffers_of(layer):
    return {name: b for name, b in layer.named_buffers() if name.startswith("weight_packed")}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_keeps_one_layout(on_card, bits):
    for layer, inputs in layers(bits):
        saved = {name: value.clone() for name, value in layer.state_dict().items()}
        before = buffers_of(layer)
        kept = len(_cuda._weights)
        on_card(False)
        expected, weight = layer(*inputs), layer.weight.clone()
        on_card(True)
        for _ in range(2):
            assert_same_bits(layer(*inputs), expected)
        assert all(b.dim() == 2 for b in before.values()) and len(_cuda._weights) == kept
        assert all(now is before[name] for name, now in buffers_of(layer).items())
        # What is asked for is what was saved, and changes nothing.
        assert_same_bits(layer.weight, weight)
        for name, value in layer.state_dict().items():
            assert_same_bits(value, saved[name], name)
        assert all(b.dim() == 2 for b in before.values())
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert_same_bits(other(*inputs), expected)
        on_card(False)
        assert_same_bits(layer(*inputs), expected)
        assert all(b.dim() == 4 for b in before.values())


def test_geglu_and_plain_products_of_one_layer(on_card):
    layer = Linear.from_float(nn.Linear(64, 32), "proj")
    q, qparams = layer.input.quantize(torch.randn(6, 64))
    packed = layer.weight_packed.clone()
    expected = layer.token_product(q, qparams)
    gated = layer.token_product(q, qparams, activation="geglu")
    assert layer.weight_packed.dim() == 3 and gated.shape == (6, 16)
    value, gate = expected.chunk(2, dim=-1)
    torch.testing.assert_close(gated, value * nn.functional.gelu(gate), rtol=1e-5, atol=1e-5)
    assert_same_bits(layer.token_product(q, qparams), expected)
    assert layer.weight_packed.dim() == 2
    assert_same_bits(layer.state_dict()["weight_packed"], packed)


def test_a_layer_that_goes_to_float_is_saved_again(on_card):
    layer = Linear.from_float(nn.Linear(64, 32), "linear")
    x, packed = torch.randn(6, 64), layer.weight_packed.clone()
    layer(x)
    layer.run_on("weight_only", "float here")
    layer(x)
    assert_same_bits(layer.weight_packed, packed)


def test_weights_are_loaded_into_any_layout(on_card):
    layer, other = (Linear.from_float(nn.Linear(64, 32), "linear") for _ in range(2))
    x = torch.randn(6, 64)
    layer(x)
    layer.load_state_dict(other.state_dict())
    assert layer.weight_packed.dim() == 4
    assert_same_bits(layer(x), other(x))


def test_what_was_kept_beside_a_weight_goes_when_it_is_laid_out(on_card):
    layer = Linear.from_float(nn.Linear(64, 32), "linear")
    before = len(_cuda._weights)
    _cuda.cached_device_weight(layer.weight_packed)
    assert len(_cuda._weights) == before + 1
    layer(torch.randn(6, 64))
    assert len(_cuda._weights) == before


def test_compiled_layers_take_the_weight_as_it_lies(on_card):
    layer = Linear.from_float(nn.Linear(64, 32), "linear")
    x = torch.randn(6, 64)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        first = compiled(x)
        assert layer.weight_packed.dim() == 4  # a trace changes nothing
        expected = layer(x)
        assert layer.weight_packed.dim() == 2
        assert_same_bits(first, expected)
        assert_same_bits(compiled(x), expected)


def test_weights_that_offloading_put_back_are_laid_out_again(on_card):
    layer = Linear.from_float(nn.Linear(64, 32), "linear")
    x, elsewhere = torch.randn(6, 64), layer.weight_packed.clone()
    expected = layer(x)
    layer.weight_packed.data = elsewhere.clone()
    assert_same_bits(layer(x), expected)
    assert layer.weight_packed.dim() == 2, "laid out beside the saved one, which is kept, too"


def test_errors_name_layout_and_shapes(on_card):
    operands = gemm_operands(6, 32, 64)
    operands["weight"] = _cuda.device_weight(operands["weight"])
    from tfq import ops

    for options, text in (
        (
            {"activation": "geglu"},
            r"n=32, k=64 must be contiguous int8 \(8, 4, 64\), got torch.int8",
        ),
        ({"weight": operands["weight"][:16]}, r"int8 \(32, 64\), got torch.int8 \(16, 64\)"),
        ({"weight": operands["weight"].short()}, r"\(32, 64\), got torch.int16 \(32, 64\)"),
    ):
        with pytest.raises(ValueError, match=text):
            ops.gemm_s8(**operands | options)


def test_what_other_streams_will_read_is_waited_for(on_card, monkeypatch):
    """On a card the kernels that lay weights out are those of one stream."""
    waited = []
    monkeypatch.setattr(
        _cuda, "finished", lambda tensor: waited.append(tensor.data_ptr()) or tensor
    )
    layer = Linear.from_float(nn.Linear(64, 32), "linear")
    layer(torch.randn(3, 64))
    assert waited == [layer.weight_packed.data_ptr()]
    conv = Conv2d.from_float(nn.Conv2d(16, 24, 3), "conv")
    conv(torch.randn(1, 16, 5, 5))
    (sums,) = _cuda.derived(conv.weight_packed)
    assert sums.shape == (9, 24)
    assert waited[1:] == [conv.weight_packed.data_ptr(), sums.data_ptr()]
    vector = torch.randn(8)
    interleaved = _cuda.cached_interleaved(vector)
    assert waited[3:] == [interleaved.data_ptr()] and _cuda.derived(vector)[0] is interleaved
    weight, _, _ = packed_of((40, 130), False)
    laid_out = _cuda.cached_device_weight(weight)
    assert waited[4:] == [laid_out.data_ptr()] and _cuda.derived(weight)[0] is laid_out


def test_a_graph_has_its_own_workspace(on_card):
    """The stream it is captured on is given to others, and it replays on any."""
    operands, workspaces = gemm_operands(8, 16, 32), {}
    with _cuda.own_workspaces(workspaces):
        products.gemm_s8(**operands)
    (own,) = workspaces.values()
    assert not _cuda._workspaces
    products.gemm_s8(**operands)
    assert _cuda._workspaces.keys() == workspaces.keys()
    assert _cuda._workspaces[0, 0].data_ptr() != own.data_ptr()

"""Layers that run in float where a table says that integers are no faster, with made-up tables."""

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from test_graph import FakeCapture, convert
from test_layouts import on_card  # noqa: F401
from tolerance import MIN_UNET_SNR, assert_same_bits, assert_signal_to_noise
from unets import build, inputs, run

import tfq
from tfq import fallback
from tfq.fallback import _layers, prefer_float, trace_products
from tfq.graphs import GraphedForward


def table(keys):
    """Entries that say float took half of the time."""
    return {
        key: {
            **dict(zip(("operation", "m", "n", "k"), key, strict=True)),
            "us": 4.0,
            "float_us": 2.0,
        }
        for key in keys
    }


def assert_close_to_float(unet, output):
    assert_signal_to_noise(output, unet.float_output, MIN_UNET_SNR[torch.float32])


def by_name(unet):
    return {layer["name"]: layer for layer in tfq.report(unet).to_dict()["layers"]}


@pytest.fixture(scope="module", params=["attention", "cross", "cross_linear", "scale_shift"])
def case(request):
    """(converted model, a call's arguments, products of the call); the first knows the float one's output."""
    unet = convert(request.param)
    kwargs = inputs(unet, timesteps=(1, 251))
    unet.float_output = run(build(request.param), kwargs)
    return unet, kwargs, trace_products(_layers(unet), lambda: run(unet, kwargs))


def test_products_of_every_layer_are_seen(case):
    unet, kwargs, products = case
    macs, layers = {}, by_name(unet)
    for layer, (operation, m, n, k), q in products:
        assert operation in ("gemm_s8", "conv2d_s8") and q.dtype is torch.uint8
        macs[layer.name] = macs.get(layer.name, 0) + m * n * k
    native = {name: layer for name, layer in layers.items() if layer["path"].endswith("_s8")}
    assert macs.keys() == native.keys()
    if "encoder_hidden_states" not in kwargs:  # the length of the text is another in the report
        assert macs == {name: 2 * layer["macs"] for name, layer in native.items()}
    assert all(
        layer.input.recorder is None and "_product" not in vars(layer) for layer in _layers(unet)
    )


def test_a_card_has_the_same_keys(on_card):  # noqa: F811
    """There GEGLU is in the epilogue of the product that is wide on the CPU."""
    unet = convert("cross_text")  # whose text is 64 wide: a card multiplies depths of 16
    kwargs = inputs(unet, timesteps=(1, 251))
    gated = []

    def keys(here):
        on_card(here)
        products = trace_products(_layers(unet), lambda: run(unet, kwargs))
        gated.append(sum(layer.weight_packed.dim() == 3 for layer in _projections(unet)))
        return [(layer.name, key) for layer, key, _ in products]

    on_cpu = keys(False)
    assert keys(True) == on_cpu
    assert gated == [0, len(_projections(unet))] and gated[1] > 0


def _projections(unet):
    return [module.proj for module in unet.modules() if isinstance(module, GEGLU)]


def test_layers_whose_products_are_no_faster_run_in_float(case):
    unet, kwargs, products = case
    unet = copy.deepcopy(unet)
    expected = run(unet, kwargs)
    convs = {key for _, key, _ in products if key[0] == "conv2d_s8"}
    prefer_float(unet, lambda: run(unet, kwargs), table(convs), "a card")
    names = {layer.name for layer, key, _ in products if key in convs}
    for name, layer in by_name(unet).items():
        assert (layer["path"] == "weight_only") == (name in names)
        if name in names:
            assert layer["reason"].startswith("float on a card: 2.0 us, integers 4.0 us (")
            assert layer["range"] is None
    assert_close_to_float(unet, run(unet, kwargs))

    prefer_float(unet, lambda: run(unet, kwargs), {}, "a card")  # of another card, or other shapes
    assert all(layer["path"] != "weight_only" for layer in by_name(unet).values())
    assert_same_bits(run(unet, kwargs), expected)


def test_what_shares_an_input_shares_its_fate(case):
    unet, kwargs, products = case
    unet = copy.deepcopy(unet)
    names = [layer.name for layer, _, _ in products if layer.name.endswith("to_q")]
    slower = table(key for layer, key, _ in products if layer.name.endswith(("to_q", "to_v")))
    prefer_float(unet, lambda: run(unet, kwargs), slower, "a card")
    layers = by_name(unet)
    for name in names:
        paths = [layers[name.replace("to_q", child)]["path"] for child in ("to_q", "to_k", "to_v")]
        assert len(set(paths[1:])) == 1  # key and value have one input
    assert_close_to_float(unet, run(unet, kwargs))


def test_a_layer_that_keeps_integers_keeps_its_neighbours(case, monkeypatch):
    """Of layers on one input, of which one alone has a product that the table does not have."""
    unet, kwargs, products = case
    unet = copy.deepcopy(unet)
    values = [layer.name for layer, _, _ in products if layer.name.endswith("to_v")]
    if not values:
        pytest.skip("no layers share an input")

    def odd_values(*arguments):
        return [
            (layer, ("gemm_s8", 0, 0, 0) if layer.name in values else key, q)
            for layer, key, q in trace_products(*arguments)
        ]

    monkeypatch.setattr(fallback, "trace_products", odd_values)
    prefer_float(unet, lambda: run(unet, kwargs), table(key for _, key, _ in products), "a card")
    layers = by_name(unet)
    for name in values:
        assert layers[name.replace("to_v", "to_k")]["path"] == layers[name]["path"] == "gemm_s8"
        assert layers[name.replace("to_v", "to_out.0")]["path"] == "weight_only"
    assert_close_to_float(unet, run(unet, kwargs))


def test_a_graph_is_captured_with_them(case):
    unet, kwargs, products = case
    unet = copy.deepcopy(unet)
    expected = run(unet, kwargs)
    slower = table(key for layer, key, _ in products if layer.name.endswith("conv1"))
    unet.forward = GraphedForward(unet, FakeCapture(), slower, "a card")
    output = run(unet, kwargs)
    assert not torch.equal(output, expected)
    assert_close_to_float(unet, output)
    float_layers = [n for n, layer in by_name(unet).items() if layer["path"] == "weight_only"]
    assert any(name.endswith("conv1") for name in float_layers)
    small = kwargs | {"sample": kwargs["sample"][..., :8]}  # shapes that the table has not
    assert_same_bits(run(unet, small), run(case[0], small))
    assert all(layer["path"] != "weight_only" for layer in by_name(unet).values())

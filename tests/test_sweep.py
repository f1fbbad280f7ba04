"""What bench/sweep.py measures: every product of the UNets that the library's table is for."""

import collections
import functools
import math
import pathlib
import sys

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch._subclasses.fake_tensor import FakeTensorMode

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
sys.path.append(str(BENCH))

import models  # noqa: E402
import sweep  # noqa: E402
import unet_products  # noqa: E402
from unet_shapes import Conv, Linear  # noqa: E402

from tfq import TfqConfig  # noqa: E402
from tfq._ext import _C  # noqa: E402
from tfq.fallback import _layers, trace_products  # noqa: E402
from tfq.lowering import Lowering, Undo  # noqa: E402
from tfq.plan import plan_layers  # noqa: E402
from tfq.shapes import example_inputs, trace_shapes  # noqa: E402

H200 = (90, 132, 232448, 233472, True)


@functools.cache
def converted(name):
    """The published UNet, converted, without weights."""
    cls, configuration = models.CONFIGURATIONS[name]
    with torch.device("meta"):
        unet = cls(**configuration).eval()
    config = TfqConfig(precision="uniform")
    plans = plan_layers(unet, config, *trace_shapes(unet))
    Lowering(unet, config, plans, Undo()).run()
    return unet


@functools.cache
def products_of(name, batch):
    """(layer, key, quantized input) of each product in one call, by running it on fake tensors."""
    unet = converted(name)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake, torch.device("meta"):
        inputs = example_inputs(unet, batch)
        return trace_products(_layers(unet), lambda: unet(**inputs))


def shape_of(layer, key, batch, gated):
    """The layer as unet_products.py describes it."""
    operation, m, n, k = key
    if operation == "gemm_s8":
        return Linear(m // batch, n, k, geglu=layer in gated)
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    return Conv(k // kernel**2, n, math.isqrt(m // batch) * stride, kernel, stride)


@pytest.mark.parametrize("name, batch", unet_products.UNETS)
def test_every_product_of_a_unet_is_swept(name, batch):
    gated = {module.proj for module in converted(name).modules() if isinstance(module, GEGLU)}
    products = products_of(name, batch)
    found = collections.Counter(shape_of(p, key, batch, gated) for p, key, _ in products)
    listed = {shape._replace(count=1): shape.count for shape in unet_products.PRODUCTS[name]}
    assert listed == dict(found)
    swept = {unet_products.key_of(*each) for each in unet_products.by_share()}
    assert {key for _, key, _ in products} <= swept


def test_what_is_most_of_the_work_comes_first():
    layers = unet_products.by_share()
    keys = [unet_products.key_of(*each) for each in layers]
    assert len(set(keys)) == len(keys)
    share = collections.Counter()
    for name, batch in unet_products.UNETS:
        products = [key for _, key, _ in products_of(name, batch)]
        total = sum(m * n * k for _, m, n, k in products)
        for operation, m, n, k in products:
            share[operation, m, n, k] += m * n * k / total
    in_order = [share[key] for key in keys]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(in_order, in_order[1:], strict=False))
    # Of stride 2 with 128 x 128 images in SDXL, of stride 1 and far more often in SD1.5.
    same = layers[keys.index(("conv2d_s8", 8192, 320, 2880))]
    assert same == (2, Conv(320, 320, 64, count=7))


def test_long_sums_of_few_tiles_are_swept_in_many_parts():
    text = _C.cuda_choose_product("conv2d_s8", 128, 1280, 11520, 4 << 20, H200, [])[2]
    found = sweep.candidates(text, within=1.6)
    for level in ("x64_", "x128_"):
        assert {parts for tile, parts, _ in found if level in tile} >= {6, 8, 12, 16}, found
    # A part is at least 512 deep, whatever the depth of a block.
    text = _C.cuda_choose_product("gemm_s8", 128, 1280, 2048, 4 << 20, H200, [])[2]
    assert {parts for _, parts, _ in sweep.candidates(text, within=1e9)} == {1, 2, 3, 4}
    assert text.count("parts of k would be shorter than 512") == 4 * len(_C.cuda_tiles())


def test_geglu_is_timed_where_a_unet_has_it(monkeypatch):
    """Of the operation alone: the float product is without."""
    seen = []

    def record(name):
        def operation(*arguments, **options):
            seen.append((name, options.get("activation")))

        return operation

    card = type("OnCard", (), {"dry_run": False, "place": dict, "copies_of": lambda *_: 2})
    monkeypatch.setattr(sweep.ops, "gemm_s8", record("native"))
    monkeypatch.setattr(sweep.weight_only, "gemm_s8", record("float"))
    for geglu in (True, False):
        for call in sweep.Product(card, 1, Linear(8, 32, 64, geglu=geglu)).calls():
            call(0)
    assert seen == [("native", "geglu"), ("float", None), ("native", None), ("float", None)]

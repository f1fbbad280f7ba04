"""The quantised layers by themselves, the report, `tfq.info`, and a source tree without binary."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from tolerance import MIN_LAYER_SNR, assert_same_bits, assert_signal_to_noise
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig, page
from tfq._ext import _C
from tfq.nn import Conv2d, Linear, ShortcutConv2d

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYER_FIELDS = [
    "name", "type", "path", "reason", "macs", "weight_bits", "range", "error", "output_error",
]  # fmt: skip
TEMPORAL_FIELDS = ["mode", "mean_error", "max_error", "chosen_tib_share", "maps"]
PATHS = {"conv2d_s8", "gemm_s8", "reference", "torch"}
RANGES = {"timestep", "static", "dynamic", "dynamic per token", None}
CONVS = [
    {"in_channels": 32, "out_channels": 48, "kernel_size": 3, "padding": 1},
    {"in_channels": 5, "out_channels": 7, "kernel_size": 3, "stride": 2},
    {"in_channels": 33, "out_channels": 16, "kernel_size": 1},
    {"in_channels": 16, "out_channels": 9, "kernel_size": (3, 2), "padding": (2, 0), "bias": False},
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", CONVS, ids=str)
def test_conv2d(settings, dtype, backend):
    layer = torch.nn.Conv2d(**settings).requires_grad_(False)
    x = torch.randn(3, settings["in_channels"], 9, 11).to(dtype)
    quantized = Conv2d.from_float(layer.to(dtype), backend=backend)
    assert_signal_to_noise(quantized(x), layer(x), MIN_LAYER_SNR)
    assert quantized(x).is_contiguous(memory_format=torch.channels_last)
    for index in range(3):
        assert_same_bits(quantized(x[index : index + 1])[0], quantized(x)[index])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (5, 40), (2, 3, 40)], ids=str)
def test_linear(shape, bias, dtype, backend):
    layer = torch.nn.Linear(40, 24, bias=bias).requires_grad_(False).to(dtype)
    x = torch.randn(shape).to(dtype)
    quantized = Linear.from_float(layer, backend=backend)
    assert_signal_to_noise(quantized(x), layer(x), MIN_LAYER_SNR)
    tokens = x.reshape(-1, 40)
    alone = torch.cat([quantized(token) for token in tokens.split(1)])
    assert_same_bits(quantized(x).reshape(-1, 24), alone)


@pytest.mark.parametrize("sources", [(24, 40), (64,)], ids=str)
def test_shortcut(sources):
    layer = torch.nn.Conv2d(64, 20, 1).requires_grad_(False)
    x = torch.randn(2, 64, 5, 6)
    x[:, 24:] *= 100  # a skip of another magnitude
    quantized = ShortcutConv2d.from_float(layer, sources)
    expected = layer(x)
    assert_signal_to_noise(quantized(x), expected, MIN_LAYER_SNR)
    assert_same_bits(quantized(x[:, :24], x[:, 24:]), quantized(x))
    if len(sources) == 2:
        # The small half is as exact as if it were alone.
        small = quantized(x * (torch.arange(64) < 24).view(1, -1, 1, 1)) - layer.bias.view(
            1, -1, 1, 1
        )
        exact = torch.nn.functional.conv2d(x[:, :24], layer.weight[:, :24])
        assert_signal_to_noise(small, exact, MIN_LAYER_SNR)


@pytest.mark.parametrize(
    "layer, from_float",
    [
        (torch.nn.Conv2d(8, 12, 3), Conv2d.from_float),
        (torch.nn.Linear(30, 17), Linear.from_float),
        (torch.nn.Conv2d(20, 6, 1), lambda layer: ShortcutConv2d.from_float(layer, (12, 8))),
    ],
)
def test_layers_are_torchs_and_show_their_weights(layer, from_float):
    quantized = from_float(layer)
    assert isinstance(quantized, type(layer))
    names = ["in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride"]
    for name in [*names, "padding", "dilation", "groups", "padding_mode"]:
        assert getattr(quantized, name, None) == getattr(layer, name, None), name
    weight = quantized.weight
    assert weight.dtype is torch.float32 and weight.shape == layer.weight.shape
    assert not weight.requires_grad
    step = layer.weight.detach().flatten(1).abs().amax(1) / 127
    error = (weight - layer.weight.detach()).flatten(1).abs().amax(1)
    # The kernels of a convolution keep their sums, which moves some elements past the nearest step.
    steps = 1 if layer.weight[0, 0].numel() > 1 else 0.5001
    assert bool((error <= step * steps).all()) and bool((error > 0).any())
    assert_same_bits(quantized.bias.detach(), layer.bias.detach())
    weight.zero_()
    assert bool(quantized.weight.any()), "a view for reading: writing to it changes nothing"
    with pytest.raises(AttributeError):
        quantized.weight = weight
    assert not any(name == "weight" for name, _ in quantized.named_parameters())
    bits = quantized.state_dict()
    assert {tensor.dtype for tensor in bits.values()} == {torch.int8, torch.int32, torch.float32}
    assert str(quantized)


@pytest.mark.parametrize(
    "settings, reason",
    [({"groups": 4}, "groups=4"), ({"dilation": 2}, r"dilation=\(2, 2\)"),
     ({"padding_mode": "reflect", "padding": 1}, "padding mode 'reflect'"),
     ({"padding": "same"}, "padding 'same'")],
)  # fmt: skip
def test_convolutions_without_a_kernel(settings, reason):
    with pytest.raises(NotImplementedError, match=f"tfq.nn.Conv2d: the layer has .*{reason}"):
        Conv2d.from_float(torch.nn.Conv2d(8, 8, 3, **settings))


@pytest.mark.parametrize("channels", [23, 25, 1])
def test_wrong_number_of_channels(channels):
    # 23 and 24 channels are packed alike.
    with pytest.raises(ValueError, match=f"Linear .*must have 24 channels, got {channels}"):
        Linear.from_float(torch.nn.Linear(24, 8))(torch.randn(3, channels))
    with pytest.raises(ValueError, match=f"Conv2d .*must have 24 channels, got {channels}"):
        Conv2d.from_float(torch.nn.Conv2d(24, 8, 1))(torch.randn(1, channels, 4, 4))
    unet = tfq.convert(build("cross"))
    kwargs = inputs(unet)
    kwargs["encoder_hidden_states"] = torch.randn(2, 7, channels)
    with pytest.raises(
        ValueError, match=f"attn2.to_k: input must have 24 channels, got {channels}"
    ):
        run(unet, kwargs)


def float_macs(unet):
    """Multiply-adds of each Conv2d and Linear for one image, from a real run."""
    macs = {}

    def count(name):
        def hook(module, args, output):
            outputs_of_one = output.numel() // (2 if output.shape[0] == 2 else 1)
            macs[name] = macs.get(name, 0) + outputs_of_one * module.weight[0].numel()

        return hook

    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count(name))
    return macs


@pytest.mark.parametrize("name", ["attention", "skips", "scale_shift", "cross", "simple_cross"])
def test_report_fields(name):
    unet = build(name)
    counted = clone(unet)
    macs = float_macs(counted)
    kwargs = inputs(unet)
    if "encoder_hidden_states" in kwargs:  # the report assumes the usual 77 tokens
        kwargs["encoder_hidden_states"] = torch.randn(2, 77, 24)
    run(counted, kwargs)
    float_layers = dict(unet.named_modules())
    config = TfqConfig(error_budget=0.05)
    values = tfq.report(tfq.convert(unet, config, calibration=[inputs(unet)])).to_dict()
    assert list(values) == ["native_mac_share", "weight_bytes", "layers", "temporal", "unfused"]
    assert values["unfused"] == []
    assert list(values["temporal"]) == TEMPORAL_FIELDS
    assert values["temporal"]["chosen_tib_share"] is None
    assert [layer["name"] for layer in values["layers"]] == [
        name for name, module in float_layers.items() if name in macs
    ]
    for layer in values["layers"]:
        assert list(layer) == LAYER_FIELDS
        assert layer["type"] == type(float_layers[layer["name"]]).__name__
        assert layer["macs"] == macs[layer["name"]], layer["name"]
        assert layer["path"] in PATHS and layer["range"] in RANGES
        is_float = layer["path"] == "torch"
        assert is_float == bool(layer["reason"]) == (layer["error"] is None)
        assert is_float == (layer["range"] is None) == (layer["output_error"] is None)
        assert layer["weight_bits"] in ((16, 32) if is_float else (8,))
        if not is_float:
            assert 0.001 < layer["error"] < 0.02
            assert 0 < layer["output_error"] <= config.error_budget
    native = sum(layer["macs"] for layer in values["layers"] if layer["path"] != "torch")
    assert values["native_mac_share"] == native / sum(macs.values())
    assert 0.98 < values["native_mac_share"] < 1
    assert json.loads(json.dumps(values)) == values


def test_report_of_other_backends_and_modes():
    unet = build("plain")
    reference = tfq.report(tfq.convert(clone(unet), TfqConfig(backend="reference"))).to_dict()
    assert reference["native_mac_share"] == 0.0
    assert {layer["path"] for layer in reference["layers"]} == {"reference", "torch"}
    weights = tfq.report(tfq.convert(clone(unet), TfqConfig(activations="float")))
    assert {layer["path"] for layer in weights.to_dict()["layers"]} == {"weight_only", "torch"}
    assert f"0.00 %, 0 of {len(reference['layers'])} layers" in str(weights)
    assert ">0 of " in page.render(weights.to_dict())
    floating = tfq.report(tfq.convert(clone(unet), TfqConfig(temporal="float"))).to_dict()
    assert floating["temporal"]["mode"] == "float"
    static = TfqConfig(activation_ranges="static")
    static = tfq.report(tfq.convert(clone(unet), static, calibration=[inputs(unet)])).to_dict()
    modes = {layer["range"] for layer in static["layers"] if layer["name"].endswith("conv1")}
    assert modes == {"static"}


def test_weight_bits_of_float_layers():
    def bits(dtype, **config):
        unet = build("plain", dtype)
        converted = tfq.convert(unet, TfqConfig(**config), calibration=[inputs(unet)])
        layers = tfq.report(converted).to_dict()["layers"]
        return {layer["name"]: layer["weight_bits"] for layer in layers}

    names = ["conv_in", "time_embedding.linear_1", "mid_block.resnets.0.time_emb_proj"]
    assert [bits(torch.float32)[name] for name in names] == [32, 16, 16]
    assert [bits(torch.bfloat16, drop_tib=True)[name] for name in names] == [16, 0, 0]


def test_weight_bytes():
    unet = build("cross")
    before = sum(p.numel() * p.element_size() for p in unet.parameters())
    tfq.convert(unet)
    tensors = {t.data_ptr(): t for t in unet.state_dict().values() if t.numel()}
    expected = sum(t.numel() * t.element_size() for t in tensors.values())
    assert tfq.report(unet).to_dict()["weight_bytes"] == expected < before / 2


def test_report_is_saved(tmp_path):
    from PIL import Image

    report = tfq.report(tfq.convert(build("attention")))
    for suffix in (".json", ".html", ".png"):
        report.save(str(tmp_path / f"r{suffix}"))
        report.save(tmp_path / "new" / "folder" / f"again{suffix}")
    assert json.loads((tmp_path / "r.json").read_text()) == report.to_dict()
    page, text = (tmp_path / "r.html").read_text(), repr(report)
    assert (
        page.startswith("<!doctype html>")
        and page.count("<tr") == len(report.to_dict()["layers"]) + 1
    )
    with Image.open(tmp_path / "r.png") as image:
        assert image.format == "PNG" and image.width > 300
        assert min(low for low, _ in image.getextrema()) < 64, "nothing is drawn"
    for layer in report.to_dict()["layers"]:
        assert layer["name"] in page and layer["name"] in text
    assert "native multiply-adds 99." in text.splitlines()[0]


@pytest.mark.parametrize("name", ["r.txt", "r", "r.json.gz", ""])
def test_report_is_saved_in_known_formats_only(tmp_path, name):
    report = tfq.report(tfq.convert(build("no_mid")))
    with pytest.raises(ValueError) as caught:
        report.save(tmp_path / name)
    for word in ("path must end in .json, .html, .png", repr(str(tmp_path / name))):
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2)], ids=repr)
def test_report_needs_a_converted_model(model):
    with pytest.raises(TypeError, match=f"converted by tfq.convert, got a {type(model).__name__}"):
        tfq.report(model)


@pytest.mark.parametrize(
    "function",
    [
        tfq.report,
        tfq.graph,
        lambda pipe: tfq.save(pipe, "never"),
        lambda pipe: tfq.compare(pipe, pipe, pipe.scheduler),
    ],
    ids=["report", "graph", "save", "compare"],
)
def test_of_a_pipeline_they_want_the_unet(function):
    """`convert` takes the pipeline, so that these are given it, too."""
    pipe = tfq.convert(DDPMPipeline(build("no_mid"), DDIMScheduler()))
    with pytest.raises(TypeError, match="got a DDPMPipeline; pass its unet$"):
        function(pipe)


def test_info():
    info = tfq.info()
    fields = "version isa isa_levels cuda_archs kernels threads cpu cores compiler python torch diffusers"
    assert list(info) == fields.split()
    assert info["version"] == tfq.__version__ and info["torch"] == torch.__version__
    assert info["isa"] in info["isa_levels"] and info["isa_levels"][0] == "scalar"
    assert info["threads"] == torch.get_num_threads()
    assert all(name.startswith(family) for family, name in info["kernels"].items())
    assert json.loads(json.dumps(info)) == info
    before = _C.isa()
    try:
        _C.set_max_isa("scalar")
        limited = tfq.info()
    finally:
        _C.set_max_isa(before)
    assert limited["isa"] == "scalar" and limited["isa_levels"] == info["isa_levels"]
    assert all(name.endswith("_scalar") for name in limited["kernels"].values())


@pytest.fixture
def source_tree(tmp_path):
    """A clone's root with the Python files of tfq and no binary."""
    no_binary = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "weights")
    shutil.copytree(ROOT / "tfq", tmp_path / "clone" / "tfq", ignore=no_binary)
    return tmp_path / "clone"


def run_python(root, code, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root, env=inherited | environment, capture_output=True, text=True,
    )  # fmt: skip


def test_source_tree_without_binary(source_tree):
    # torch is imported before the installed packages, a tfq perhaps among them, are put out of sight.
    code = "import sys, torch; sys.path = [p for p in sys.path if '-packages' not in p]; import tfq"
    result = run_python(source_tree, code)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    version = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    start = f"ImportError: tfq {tfq.__version__}: the native module tfq._C for {version} is not in "
    assert lines[-1].startswith(start + str(source_tree / "tfq"))
    assert "`pip install .` from the root of the source tree" in lines[-1]


def test_source_tree_uses_the_installed_binary(source_tree, tmp_path):
    installed = tmp_path / "site"
    shutil.copytree(pathlib.Path(_C.__file__).parent, installed / "tfq", symlinks=True)
    result = run_python(
        source_tree, "import tfq.nn; print(tfq.nn.__file__)", PYTHONPATH=str(installed)
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(installed / "tfq" / "nn.py")

"""LoRA on converted models: adapters beside the integers, and adapters fused before."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from tolerance import MIN_UNET_SNR, assert_same_bits, assert_signal_to_noise
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig

UNIFORM = TfqConfig(precision="uniform")
LEAST = MIN_UNET_SNR[torch.float32]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS = {
    "attention": ATTENTION,
    "feed_forward": ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
    "convolutions": ["conv1", "conv2", "conv_shortcut", "conv"],
    "temporal": ["time_emb_proj"],
}


def lora(targets):
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)


def add(unet, targets, name="default"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet.add_adapter(lora(targets), name)


def has_adapters(unet):
    return any(isinstance(module, BaseTunerLayer) for module in unet.modules())


@pytest.fixture
def case(request):
    """Float UNet without and with an adapter, arguments, outputs of both."""
    plain = build("cross")
    kwargs = inputs(plain)
    adapted = clone(plain)
    add(adapted, TARGETS[getattr(request, "param", "attention")])
    outputs = run(plain, kwargs), run(adapted, kwargs)
    assert not torch.allclose(*outputs, rtol=0.1)
    return plain, adapted, kwargs, *outputs


@pytest.mark.parametrize("case", TARGETS, indirect=True)
def test_converted_with_an_adapter(case):
    """The layers become integers, the side path stays float; unloading leaves the converted model."""
    plain, adapted, kwargs, without, expected = case
    tfq.convert(plain, UNIFORM)
    tfq.convert(adapted, UNIFORM)
    assert has_adapters(adapted)
    assert_signal_to_noise(run(adapted, kwargs), expected, LEAST)
    layers, plain_layers = (
        {layer["name"]: layer["path"] for layer in tfq.report(u).to_dict()["layers"]}
        for u in (adapted, plain)
    )
    assert layers == plain_layers
    assert not any("lora" in name or "base_layer" in name for name in layers)
    adapted.disable_adapters()
    assert_signal_to_noise(run(adapted, kwargs), without, LEAST)
    adapted.unload_lora()
    assert not has_adapters(adapted)
    output = run(adapted, kwargs)
    assert_signal_to_noise(output, without, LEAST)
    if not any(layer.endswith("time_emb_proj") for layer in adapted.state_dict()):
        assert not tfq.report(adapted).to_dict()["unfused"]


@pytest.mark.parametrize("case", ["attention", "feed_forward", "convolutions"], indirect=True)
def test_added_after_conversion(case, tmp_path):
    plain, adapted, kwargs, _, expected = case
    adapted.save_lora_adapter(tmp_path)
    unet = tfq.convert(plain, UNIFORM)
    before = run(unet, kwargs)
    unet.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert_signal_to_noise(run(unet, kwargs), expected, LEAST)
    assert tfq.report(unet).to_dict()["unfused"]
    unet.unload_lora()
    assert_same_bits(run(unet, kwargs), before)
    assert not tfq.report(unet).to_dict()["unfused"]


def test_calibrated_with_an_adapter(case):
    _, adapted, kwargs, _, expected = case
    tfq.convert(adapted, UNIFORM, calibration=[kwargs])
    assert_signal_to_noise(run(adapted, kwargs), expected, LEAST)


@pytest.mark.parametrize("precision", ["auto", "uniform"])
def test_fused_before_conversion(case, precision, tmp_path):
    """All layers native, nothing unfused, and the file needs no adapter."""
    _, adapted, kwargs, _, expected = case
    adapted.fuse_lora()
    adapted.unload_lora()
    tfq.convert(adapted, TfqConfig(precision=precision, error_budget=1.0), calibration=[kwargs])
    report = tfq.report(adapted).to_dict()
    assert report["native_mac_share"] > 0.98 and not report["unfused"]
    output = run(adapted, kwargs)
    assert_signal_to_noise(output, expected, LEAST)
    adapted.save_pretrained(tmp_path)
    assert_same_bits(run(type(adapted).from_pretrained(tmp_path), kwargs), output)


def test_fusing_into_integers_is_refused(case):
    plain, *_, kwargs, _, _ = case
    unet = tfq.convert(plain, UNIFORM)
    add(unet, ATTENTION)
    expected = run(unet, kwargs)
    for safe in (False, True):
        with pytest.raises(
            TypeError, match=r"fuse a LoRA into the float model, before tfq.convert"
        ):
            unet.fuse_lora(safe_fusing=safe)
        assert_same_bits(run(unet, kwargs), expected)


def test_two_adapters_and_their_scales(case):
    plain, *_, kwargs, _, _ = case
    unet = clone(plain)
    tfq.convert(unet, UNIFORM)
    outputs = []
    for model in (plain, unet):
        add(model, ATTENTION, "one")
        add(model, ["to_q", "ff.net.2"], "two")
        model.set_adapters(["one", "two"], [0.5, 1.5])
        outputs.append(run(model, kwargs))
    assert_signal_to_noise(outputs[1], outputs[0], LEAST)


def test_adapter_on_the_time_embedding_is_refused():
    unet = build("cross")
    add(unet, ["linear_1"])
    with pytest.raises(ValueError, match=r"time_embedding.linear_1.* an adapter.*fuse_lora"):
        tfq.convert(unet)


def test_save_with_an_adapter(case, tmp_path):
    """As with float models in diffusers, the adapter is saved on its own."""
    plain, *_, kwargs, _, _ = case
    unet = tfq.convert(plain, UNIFORM)
    add(unet, ATTENTION)
    with pytest.raises(
        ValueError, match=r"save_pretrained: the model has a LoRA adapter.*unload_lora"
    ):
        tfq.save(unet, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_graph_follows_the_adapters():
    """Whatever is done to them after the capture, the next call has the bits of an eager one."""
    unet = tfq.convert(build("cross"), UNIFORM)
    eager, kwargs, outputs = clone(unet), inputs(unet), []
    tfq.graph(unet)
    changes = (
        lambda model: None,
        lambda model: add(model, ATTENTION, "one"),
        lambda model: model.set_adapters(["one"], [0.5]),
        lambda model: add(model, ["ff.net.2"], "two"),
        lambda model: model.set_adapter("one"),
        lambda model: model.disable_adapters(),
        lambda model: model.enable_adapters(),
        lambda model: model.delete_adapters("two"),
        lambda model: model.unload_lora(),
    )
    for number, change in enumerate(changes):
        change(unet)
        change(eager)
        outputs.append(run(unet, kwargs))
        assert_same_bits(outputs[-1], run(eager, kwargs), f"change {number}")
        assert_same_bits(run(unet, kwargs), outputs[-1], f"replay {number}")
    assert_same_bits(outputs[-1], outputs[0])
    assert not any(torch.equal(a, b) for a, b in zip(outputs[:4], outputs[1:5], strict=False))

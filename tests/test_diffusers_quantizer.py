"""Saving and loading: float checkpoints, what diffusers is told, atomic writing, and bad input."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, PipelineQuantizationConfig, UNet2DModel
from safetensors import safe_open
from unets import build, inputs, run

import tfq
from tfq import TfqConfig, saving

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A saved tiny UNet with a table of two timesteps."""
    unet = build("plain")
    tfq.convert(unet, calibration=[inputs(unet)]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    """Change keys of the quantization_config; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values["quantization_config"].pop(key, None)
        if value is not None:
            values["quantization_config"][key] = value
    path.write_text(json.dumps(values))


def edit_weights(folder, change):
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors = {key: value.clone() for key, value in tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def load_fails(folder, error, *words, **options):
    with pytest.raises(error) as caught:
        UNet2DModel.from_pretrained(folder, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [{}, {"weights": "int4", "activations": "float"}], ids=str)
def test_float_checkpoint(tmp_path, config, dtype):
    build("attention").save_pretrained(tmp_path / "float")
    config = TfqConfig(**config)
    loaded = UNet2DModel.from_pretrained(
        tmp_path / "float", dtype=dtype, quantization_config=config
    )
    converted = tfq.convert(build("attention", dtype), config)
    kwargs = inputs(converted)
    expected = run(converted, kwargs)
    assert torch.equal(run(loaded, kwargs), expected)
    assert loaded._tfq_conversion.config == config
    assert not any(p.requires_grad for p in loaded.parameters())
    tfq.save(loaded, tmp_path / "int8")
    again = UNet2DModel.from_pretrained(tmp_path / "int8")
    assert torch.equal(run(again, kwargs), expected)


def test_pipeline_quantization_config(tmp_path):
    DDPMPipeline(build("plain"), DDPMScheduler()).save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(quant_mapping={"unet": TfqConfig(weights="int4")})
    unet = DDPMPipeline.from_pretrained(tmp_path, quantization_config=config).unet
    kwargs = inputs(unet)
    expected = run(tfq.convert(build("plain"), TfqConfig(weights="int4")), kwargs)
    assert torch.equal(run(unet, kwargs), expected)


def test_config_as_a_dict(tmp_path):
    build("plain").save_pretrained(tmp_path)
    values = {"quant_method": "tfq", **TfqConfig(seed=3).to_dict()}
    loaded = UNet2DModel.from_pretrained(tmp_path, quantization_config=values)
    assert loaded._tfq_conversion.config == TfqConfig(seed=3)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"temporal": "cache"}, "temporal='cache' needs scheduler= or calibration="),
        ({"activation_ranges": "static"}, "activation_ranges='static' needs scheduler="),
        ({"drop_tib": True}, "drop_tib=True needs scheduler="),
        ({"reconstruction": "block"}, "reconstruction='block' needs scheduler="),
    ],
    ids=str,
)
def test_float_checkpoint_needs_no_calibration(tmp_path, config, words):
    build("plain").save_pretrained(tmp_path)
    load_fails(
        tmp_path, ValueError, words, "without calibration", "call tfq.convert",
        quantization_config=TfqConfig(**config),
    )  # fmt: skip


def test_what_diffusers_is_told():
    unet = tfq.convert(build("plain"))
    assert unet.is_quantized and unet.quantization_method == "tfq"
    assert unet.config.quantization_config is unet._tfq_conversion
    assert unet.hf_quantizer.quantization_config is unet._tfq_conversion
    assert unet.hf_quantizer.is_serializable and not unet.hf_quantizer.is_trainable
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    assert torch.equal(run(unet.to("cpu"), kwargs), expected)
    for cast in (lambda: unet.to(torch.bfloat16), lambda: unet.half(), lambda: unet.float()):
        with pytest.raises(ValueError, match="a converted model stays in torch.float32"):
            cast()
    assert torch.equal(run(pickle.loads(pickle.dumps(unet)), kwargs), expected)
    with pytest.raises(NotImplementedError, match="load the float checkpoint"):
        unet.dequantize()


def test_a_conversion_that_fails_tells_nothing(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no")

    unet = build("plain")
    config = dict(unet.config)
    monkeypatch.setattr(type(unet), "register_to_config", fail)
    with pytest.raises(RuntimeError, match="no"):
        tfq.convert(unet)
    assert dict(unet.config) == config
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "_tfq_conversion"):
        assert not hasattr(unet, name)


def test_config_methods_diffusers_calls():
    config = TfqConfig()
    assert config.quant_method.value == "tfq"
    assert config.update(device_map="cpu") == {"device_map": "cpu"}
    with pytest.raises(ValueError, match="frozen, cannot update seed"):
        config.update(seed=1, device_map="cpu")
    with pytest.raises(ValueError, match="quant_method must be 'tfq', got 'gguf'"):
        TfqConfig.from_dict({"quant_method": "gguf"})


def test_save_writes_a_model_card(tmp_path):
    unet = tfq.convert(build("plain"), TfqConfig(weights="int4"))
    assert tfq.save(unet, tmp_path / "a" / "b") is None
    card = (tmp_path / "a" / "b" / "README.md").read_text()
    for word in ("library_name: diffusers", "UNet2DModel", "INT4", "4-bit weights", "import tfq"):
        assert word in card
    assert os.listdir(tmp_path / "a") == ["b"]
    mode = (tmp_path / "a" / "b").stat().st_mode
    (tmp_path / "c").mkdir()
    assert mode == (tmp_path / "c").stat().st_mode
    with safe_open(tmp_path / "a" / "b" / WEIGHTS, "pt") as file:
        assert file.metadata()["tfq_format_version"] == "3"


@pytest.mark.parametrize("where", ["weights", "card", "rename"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_interrupted_save_leaves_the_folder(folder, monkeypatch, where, error):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    unet = tfq.convert(build("plain"), TfqConfig(weights="int4"))

    def fail(*args, **kwargs):
        raise error("disk full")

    rename = os.rename
    patches = {
        "weights": (safetensors.torch, "save_file", fail),
        "card": (saving, "_model_card", fail),
        "rename": (os, "rename", lambda a, b: (fail if "partial" in str(a) else rename)(a, b)),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*patches[where])
        with pytest.raises(error, match="disk full"):
            tfq.save(unet, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == [folder.name]
    tfq.save(unet, folder)
    kwargs = inputs(unet)
    assert torch.equal(run(UNet2DModel.from_pretrained(folder), kwargs), run(unet, kwargs))
    assert os.listdir(folder.parent) == [folder.name]


def test_save_refuses(folder, tmp_path):
    unet = tfq.convert(build("plain"))
    with pytest.raises(TypeError, match="save: needs a model converted by tfq.convert, got a UNet"):
        tfq.save(build("plain"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="must be a folder, got the file"):
        tfq.save(unet, folder / WEIGHTS)
    with pytest.raises(ValueError, match="safetensors only"):
        unet.save_pretrained(tmp_path / "pickle", safe_serialization=False)


FOREIGN = (
    "thesis.txt",
    "diffusion_pytorch_model_runs/thesis.txt",
    "diffusion_pytorch_model.safetensors.d/thesis.txt",
    "diffusion_pytorch_model-my-lora-notes.txt",
    "diffusion_pytorch_model.bin",
    "my_diffusion_pytorch_model.safetensors",
    "README.md.txt",
    "scheduler_config.json",
)


def test_save_keeps_what_is_no_saved_model(tmp_path):
    unet = tfq.convert(build("plain"))
    for index, name in enumerate(FOREIGN):
        file = tmp_path / str(index) / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        with pytest.raises(ValueError) as caught:
            tfq.save(unet, tmp_path / str(index))
        assert str(caught.value).endswith(f"more than a saved model: {name.split('/')[0]}")
        assert file.read_text() == "mine"


def test_a_folder_in_the_place_of_a_file_is_no_saved_model(tmp_path):
    (tmp_path / "model" / "config.json").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds more than a saved model: config.json"):
        tfq.save(tfq.convert(build("plain")), tmp_path / "model")


def test_save_replaces_shards_variants_and_their_index(tmp_path):
    unet = tfq.convert(build("plain"))
    for variant in (None, "int8", "v1.0"):
        for size in ("100KB", "1GB"):
            tfq.save(unet, tmp_path / "model", max_shard_size=size, variant=variant)
    tfq.save(unet, tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["README.md", "config.json", WEIGHTS]


@pytest.mark.parametrize("version", [4, 0, "1", None], ids=repr)
def test_format_version(folder, version):
    if version is None:
        edit_config(folder, format_version=None)
        load_fails(folder, ValueError, "unknown key", "'layers'")
        return
    edit_config(folder, format_version=version)
    load_fails(
        folder, ValueError, f"format version {version!r}", "reads version 1 or 2 or 3", "install"
    )


def test_packed_layout_version(folder):
    edit_config(folder, packed_layout_version=9)
    load_fails(folder, ValueError, "packed layout version 9", "reads version 1")


SHORTCUT, CONV = (f"down_blocks.1.resnets.0.{name}" for name in ("conv_shortcut", "conv2"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers": None, "rows": None}, "lacking: layers, rows"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ({"rows": {}}, "layers, rows, output_correction or temporal are not as tfq writes them: 'timesteps'"),
        ({"layers": [{"name": "a", "type": "Linear", "colour": 1}]}, "colour"),
        ({"layers": [{"name": "a", "type": "Linear", "activations": "int7"}]},
         "as tfq writes them: activations of a is 'int7'"),
        ({"layers": [{"name": "a", "type": "Linear", "ranges": "row", "weight_bits": 5}]},
         "weight_bits of a is 5, ranges of a is 'row'"),
        ({"layers": [{"name": SHORTCUT, "type": "Conv2d", "sources": [-8, 40]}]},
         f"sources (-8, 40) of '{SHORTCUT}', which must be positive and add up to the input channels"),
        ({"layers": [{"name": SHORTCUT, "type": "Conv2d", "sources": [16]}]}, "sources (16,) of"),
        ({"layers": [{"name": SHORTCUT, "type": "Conv2d", "sources": ["32"]}]}, "sources ('32',) of"),
        ({"layers": [{"name": CONV, "type": "Conv2d", "sources": [64]}]}, "of a 1x1 Conv2d; it is Conv2d("),
        ({"layers": [{"name": SHORTCUT, "type": "Conv2d", "ranges": "static"}]},
         f"layers has ranges 'static' of '{SHORTCUT}', but the table has no place for its input"),
        ({"layers": [{"name": "a.b", "type": "Linear"}]}, "'a.b' as Linear, but in the UNet2DModel"),
        ({"config": {"wieghts": "int8"}}, "unknown key 'wieghts'"),
        ({"rows": {"timesteps": [7, 422]}}, "two different saves: rows for timesteps [7.0, 422.0]"),
        ({"rows": {"timesteps": [7]}}, "time_embedding.table must be (1, "),
    ],
    ids=str,
)  # fmt: skip
def test_config_that_is_not_ours(folder, changes, words):
    edit_config(folder, **changes)
    load_fails(folder, ValueError, words)


NAME = "mid_block.resnets.0.conv1.weight_"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop(NAME + "scale"), f"lack 1 of 185 tensors|e.g. {NAME}scale"),
        (lambda t: t.update({NAME + "scale": t[NAME + "scale"].half()}),
         f"{NAME}scale must be torch.float32, got torch.float16"),
        (lambda t: t.update({NAME + "packed": t[NAME + "packed"].float()}),
         f"{NAME}packed must be torch.int8, got torch.float32"),
        (lambda t: t.update({NAME + "sum": t[NAME + "sum"][:-1].clone()}),
         f"{NAME}sum must be (64,) by config.json, got (63,) in the weight file"),
        (lambda t: t.update({k: v[:1].clone() for k, v in t.items() if "embedding.values" in k}),
         "time_embedding.values must be (2,)"),
        (lambda t: t[NAME + "packed"].view(-1)[7:8].fill_(-128),
         f"from_pretrained: {NAME}packed must be in [-127, 127], got -128"),
    ],
    ids=["missing", "half", "float", "short", "rows", "levels"],
)  # fmt: skip
def test_weights_that_are_not_ours(folder, change, words):
    edit_weights(folder, change)
    load_fails(folder, ValueError, *words.split("|"))


@pytest.mark.parametrize("size", [0, 4, 500, -1], ids=str)
def test_truncated_file(folder, size):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    load_fails(folder, OSError, WEIGHTS)


def test_corrupt_header(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:8] + b"\xff" * 100 + data[108:])
    load_fails(folder, OSError, WEIGHTS)


def test_float_weights_under_a_config_of_ours(folder, tmp_path):
    """A config.json of a converted model beside float weights, and one with a bare TfqConfig."""
    build("plain").save_pretrained(tmp_path / "float")
    os.replace(tmp_path / "float" / WEIGHTS, folder / WEIGHTS)
    load_fails(folder, ValueError, "the weight files lack", "tensors that config.json asks for")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] = {"quant_method": "tfq", **TfqConfig().to_dict()}
    path.write_text(json.dumps(values))
    load_fails(folder, ValueError, "no format_version", "pass quantization_config=TfqConfig(...)")


def test_float16_and_a_conversion_for_a_float_checkpoint(folder, tmp_path):
    load_fails(folder, TypeError, "must be torch.float32 or torch.bfloat16, got torch.float16",
               dtype=torch.float16)  # fmt: skip
    build("plain").save_pretrained(tmp_path / "float")
    conversion = UNet2DModel.from_pretrained(folder).config.quantization_config
    load_fails(tmp_path / "float", TypeError, "must be a TfqConfig, got Conversion",
               quantization_config=conversion)  # fmt: skip

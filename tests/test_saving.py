"""Saved models come back as they were: bits, dtypes, structure, in another process and elsewhere."""

import copy
import importlib.util
import json
import pathlib
import pickle

import pytest
import safetensors.numpy
import torch
from conftest import available_levels
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import safe_open
from saved_models import CASES, convert, load_in_new_process
from unets import build, inputs, run

import tfq
from tfq import TfqConfig
from tfq.plan import LayerPlan, plan_layers
from tfq.saving import Conversion, SavedErrors, build_skeleton
from tfq.shapes import trace_shapes

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``{case: (converted model, inputs, output, folder)}``, each loaded in a new process too."""
    root = tmp_path_factory.mktemp("saved")
    models = {}
    for name in CASES:
        unet, kwargs = convert(name)
        unet.save_pretrained(root / name)
        models[name] = (unet, kwargs, run(unet, kwargs), root / name)
        torch.save(kwargs, root / name / "inputs.pt")
    for level in {available_levels()[-1], available_levels()[-2]}:
        assert load_in_new_process(root, level) == level
    return models


@pytest.mark.parametrize("name", CASES)
def test_outputs_in_a_new_process(saved, name):
    """At the level the model was converted at, and at the one below."""
    _, _, expected, folder = saved[name]
    for level in available_levels()[-2:]:
        assert torch.equal(torch.load(folder / f"{level}.pt"), expected), level


@pytest.mark.parametrize("name", CASES)
def test_loaded_model_is_the_converted_one(saved, name):
    unet, kwargs, expected, folder = saved[name]
    loaded = type(unet).from_pretrained(folder)
    assert torch.equal(run(loaded, kwargs), expected)
    state = loaded.state_dict()
    assert list(state) == list(unet.state_dict())
    for key, value in unet.state_dict().items():
        assert state[key].dtype is value.dtype, key
        assert torch.equal(state[key], value), key
    modules, expected_modules = (
        {name: type(m) for name, m in u.named_modules(remove_duplicate=False)}
        for u in (loaded, unet)
    )
    assert modules == expected_modules
    assert not any(m.training for m in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.dtype is unet.dtype

    report, before = tfq.report(loaded).to_dict(), tfq.report(unet).to_dict()
    assert report["temporal"].pop("maps") is None and before["temporal"].pop("maps") is not None
    assert report == before
    assert tfq.temporal_blocks(loaded) == tfq.temporal_blocks(unet)
    with pytest.raises(ValueError, match="sample must be"):
        loaded(kwargs["sample"][:, :2], 7)
    assert torch.equal(run(copy.deepcopy(loaded), kwargs), expected)


def test_file_has_no_float_copy(saved):
    for unet, _, _, folder in saved.values():
        converted = {plan.name for plan in unet._tfq_conversion.plans if plan.converted}
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert not {f"{name}.weight" for name in converted} & set(shapes)
        for name in converted:
            packed = [key for key in shapes if key.startswith(f"{name}.weight_packed")]
            assert packed and {shapes[key] for key in packed} <= {"I8", "U8"}


def test_kept_block_is_float16(saved):
    for name in ("int8-fold-timestep", "cross-bfloat16-table", "attention-bfloat16"):
        loaded = type(saved[name][0]).from_pretrained(saved[name][3])
        tib = loaded.time_embedding.tib
        if name.endswith("table"):
            assert tib is None and loaded.time_embedding.source.tib.embedding.linear_1
        else:
            kept = torch.float16 if len(loaded.time_embedding.values) else loaded.dtype
            assert {p.dtype for p in tib.parameters()} == {kept}


def test_config_json(saved):
    values = json.loads((saved["int8-select-timestep"][3] / "config.json").read_text())
    values = values["quantization_config"]
    assert values["quant_method"] == "tfq" and values["format_version"] == 3
    assert values["packed_layout_version"] == 1 and values["dtype"] == "float32"
    assert TfqConfig.from_dict(values["config"]).temporal == "select"
    assert values["rows"] == {"timesteps": [7.0, 421.0]}
    plans = [LayerPlan.from_dict(layer) for layer in values["layers"]]
    assert plans == saved["int8-select-timestep"][0]._tfq_conversion.plans
    assert {plan.ranges for plan in plans if plan.converted} == {"dynamic", "timestep"}
    assert set(values["temporal"]) == {"mean_error", "max_error", "chosen_tib_share"}


def test_another_dtype_leaves_scales_and_tables(saved):
    unet, kwargs, expected, folder = saved["int8-fold-timestep"]
    loaded = UNet2DModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.dtype is torch.bfloat16 and loaded.conv_in.weight.dtype is torch.bfloat16
    for key, value in dict(unet.named_buffers()).items():
        assert torch.equal(loaded.get_buffer(key), value), key
    output = run(loaded, kwargs | {"sample": kwargs["sample"].bfloat16()})
    assert output.dtype is torch.bfloat16
    assert (output - expected).norm() < 0.05 * expected.norm()


def test_bias_that_the_float_layer_has_not(tmp_path):
    unet = tfq.convert(build("cross"))
    kwargs = inputs(unet)
    plain = run(unet, kwargs)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    layer = unet.get_submodule(name)
    layer.bias = torch.nn.Parameter(torch.randn(layer.out_features), requires_grad=False)
    next(p for p in unet._tfq_conversion.plans if p.name == name).adds_bias = True
    expected = run(unet, kwargs)
    assert not torch.equal(expected, plain)
    unet.save_pretrained(tmp_path)
    assert torch.equal(run(type(unet).from_pretrained(tmp_path), kwargs), expected)


def test_save_again_over_the_folder_it_was_loaded_from(tmp_path):
    unet = tfq.convert(build("plain"))
    kwargs = inputs(unet)
    unet.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    expected = run(unet, kwargs)
    assert torch.equal(run(loaded, kwargs), expected)
    assert torch.equal(run(UNet2DModel.from_pretrained(tmp_path), kwargs), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(loaded)), kwargs), expected)


def test_shards_and_variant(tmp_path):
    unet = tfq.convert(build("attention"))
    kwargs = inputs(unet)
    for save in (tfq.save, lambda u, folder, **options: u.save_pretrained(folder, **options)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save(unet, folder, max_shard_size="100KB", variant="int8")
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        assert len(files) > 2 and all(".int8-000" in name for name in files)
        loaded = UNet2DModel.from_pretrained(folder, variant="int8")
        assert torch.equal(run(loaded, kwargs), run(unet, kwargs))


def test_pipeline(tmp_path):
    unet = tfq.convert(build("plain"), scheduler=DDPMScheduler(), num_inference_steps=2)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    images = [
        DDPMPipeline(u, DDPMScheduler())(
            generator=torch.manual_seed(0), num_inference_steps=2, output_type="np"
        ).images
        for u in (unet, loaded.unet)
    ]
    assert (images[0] == images[1]).all()


def _ddpm_cifar10():
    spec = importlib.util.spec_from_file_location("bench_models", ROOT / "bench" / "models.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    return models.DDPM_CIFAR10


def _skeleton_share(config):
    """Of a converted DDPM CIFAR-10 with 50 timesteps, as a share of float32; it has no weights."""
    unet = UNet2DModel(**_ddpm_cifar10())
    size = sum(t.nbytes for t in unet.state_dict().values())
    plans = plan_layers(unet, config, *trace_shapes(unet))
    conversion = Conversion(
        config, plans, SavedErrors(0.0, 0.0, None), [float(t) for t in range(50)], torch.float32
    )
    build_skeleton(unet.to("meta"), conversion)
    return sum(t.nbytes for t in unet.state_dict().values()) / size


@pytest.mark.parametrize(
    "weights, drop_tib, most",
    [("int8", False, 0.31), ("int8", True, 0.28), ("int4", False, 0.20), ("int4", True, 0.17)],
)
def test_size_of_ddpm_cifar10(weights, drop_tib, most):
    share = _skeleton_share(TfqConfig(weights=weights, drop_tib=drop_tib))
    print(f"DDPM CIFAR-10, {weights}, drop_tib={drop_tib}: {share:.4f} of float32")
    assert 0.12 < share <= most


def test_size_of_the_file_is_that_of_its_tensors(saved):
    for unet, _, _, folder in saved.values():
        tensors = sum(t.nbytes for t in unet.state_dict().values())
        header = int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
        assert (folder / WEIGHTS).stat().st_size <= tensors + 8 + header


@pytest.mark.parametrize("case", ["int8-fold-timestep", "int4-fold-timestep"])
def test_files_can_be_read_as_documented(saved, case):
    text = (ROOT / "docs" / "saving.md").read_text()
    code = next(block for block in text.split("```python\n")[1:] if "read_weight" in block)
    scope = {}
    exec(code.split("```")[0], scope)
    unet, _, _, folder = saved[case]
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    for name in ("mid_block.resnets.0.conv1", "mid_block.attentions.0.to_q"):
        layer = unet.get_submodule(name)
        packed, scale, zero_point = (
            tensors.get(f"{name}.weight_{part}") for part in ("packed", "scale", "zero_point")
        )
        expected = layer.weight.flatten(1)
        if layer.weight.dim() == 4:
            expected = layer.weight.permute(0, 2, 3, 1).flatten(1)
        weight = scope["read_weight"](packed, scale, zero_point, *expected.shape)
        assert torch.equal(torch.from_numpy(weight), expected)


@pytest.mark.parametrize(
    "name, base", [("someone/ddpm", "someone/ddpm"), ("ddpm", None), ("/a/b", None)]
)
def test_model_card_is_one_for_the_hub(tmp_path, name, base):
    from huggingface_hub import ModelCard

    unet = build("plain")
    unet.register_to_config(_name_or_path=name)
    tfq.save(tfq.convert(unet), tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md").data
    assert card.library_name == "diffusers" and card.tags == ["tfq", "quantized"]
    assert card.base_model == base
    assert card.to_dict().get("base_model_relation") == (base and "quantized")

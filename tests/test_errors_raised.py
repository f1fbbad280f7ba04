"""Every message of docs/errors.md that a user of a model or a pipeline can meet is really raised.

Each row of the pages' sections below has a case here, which must raise what the row says; a row without
a case fails. That the rows are those of the code is tested in tests/test_docs.py.
"""

import json
import pathlib
import re
from unittest import mock

import accelerate
import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from pipelines import build as build_pipeline
from pipelines import transformer
from safetensors.torch import load_file, save_file
from test_errors_convert import FEW_STEPS, ForeignStep
from unets import CROSS, build, inputs

import tfq
from tfq import TfqConfig
from tfq.diffusers_quantizer import TfqQuantizer
from tfq.weights import QuantizedWeight

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "errors.md"
SECTIONS = (
    "Converting",
    "Running a converted model",
    "Saving and loading",
    "Reports and comparisons",
)
# Rows that need more than one call to raise, and the tests that do.
ELSEWHERE = {
    "convert: calibration failed in process": "tests/test_distributed.py",
    "convert: reconstruction of the temporal block: the loss is": "tests/test_tiar.py",
}


def rows():
    """Messages of the sections, as the page has them."""
    found = []
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        if part.split("\n")[0] in SECTIONS:
            found += re.findall(r"^\| `(.+?)` \| .* \|$", part, re.MULTILINE)
    return found


def convert(name="plain", config=None, **arguments):
    return tfq.convert(build(name), config, **arguments)


def pipe(family="Stable Diffusion 1", **arguments):
    return tfq.convert(build_pipeline(family), **arguments)


def call(name="plain", converted=(), **changes):
    """A call of a converted UNet with arguments changed by functions of what they were."""
    unet = convert(name, **dict(converted))
    kwargs = inputs(unet)
    return unet(**{**kwargs, **{key: change(kwargs[key]) for key, change in changes.items()}})


def changed(name, change):
    """Conversion of a UNet after ``change(unet)``."""
    unet = build(name)
    change(unet)
    return tfq.convert(unet)


def damage(unet):
    unet.conv_in.weight.data[0] = float("nan")


def offload(unet):
    accelerate.cpu_offload(unet, execution_device="cpu")


def hook(unet):
    unet.time_embedding.register_forward_hook(lambda *args: None)


class OnlyVae(diffusers.DiffusionPipeline):
    """A pipeline with nothing that can be converted."""

    def __init__(self, vae):
        super().__init__()
        self.register_modules(vae=vae)


def saved(folder, config=None, weights=None, name="plain", **options):
    """Load a saved conversion after changes of its quantization_config and of its weights."""
    unet = tfq.convert(
        build(name), TfqConfig(precision="uniform"), calibration=[inputs(build(name))]
    )
    unet.save_pretrained(folder)
    if config is not None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        config(values["quantization_config"])
        path.write_text(json.dumps(values))
    if weights is not None:
        path = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        weights(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
    return UNet2DModel.from_pretrained(folder, **options)


def change_layer(part, **values):
    """Change of a config: the entry of the first layer whose name has `part` in it."""
    return lambda config: next(x for x in config["layers"] if part in x["name"]).update(values)


def other_plan(folder):
    """A config.json that says of the layers another than the weights, as long as theirs."""

    def exchange(config):
        change_layer(".conv1", activations="int16")(config)
        change_layer(".conv2", ranges="dynamic")(config)

    saved(folder, exchange)


def float_checkpoint(folder, *, config, **options):
    build("plain").save_pretrained(folder)
    return UNet2DModel.from_pretrained(folder, quantization_config=config, **options)


def replace(folder, *files):
    """`tfq.save` over a folder with other files in it."""
    folder = folder / "folder"
    folder.mkdir()
    for file in files:
        (folder / file).write_text("")
    tfq.save(convert(), folder)


def save_over_a_file(folder):
    (folder / "file").write_text("")
    tfq.save(convert(), folder / "file")


def save_with_lora(folder):
    from peft import LoraConfig

    unet = build("cross")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    tfq.convert(unet).save_pretrained(folder)


def lora_into_integers():
    tfq.nn.Linear.from_float(torch.nn.Linear(8, 8)).weight.data += 1


def conditioned(**settings):
    calibration = [inputs(build("cross_time_cond"))]
    return convert("cross_time_cond", TfqConfig(**settings), calibration=calibration)


def dropped_condition():
    """Of a model that an earlier version saved."""
    unet = conditioned(precision="uniform")
    unet.time_embedding.finish(drop_tib=True)
    unet(**inputs(unet))


def wrong_integers():
    layer = tfq.nn.Linear(torch.nn.Linear(8, 8))
    layer.load_weight(QuantizedWeight(torch.zeros(8, 9, dtype=torch.int8), torch.ones(8)))


def graph_without_kernels():
    """`tfq.graph` of a model that says it is on a card, in a build for the CPU."""
    unet = convert()
    unet.__class__ = type("OnCard", (UNet2DModel,), {"device": torch.device("cuda")})
    with mock.patch("tfq.graphs.HAS_CUDA", False):
        tfq.graph(unet)


def graph_with_a_host_value():
    unet = convert("plain")
    unet.conv_in.register_forward_hook(lambda module, args, output: output * output.max().item())
    with torch.no_grad():
        tfq.graph(unet)(**inputs(build("plain")))


def compare(first, second, **options):
    return tfq.compare(
        build("plain", **first), convert("plain"), DDIMScheduler(), num_inference_steps=1, **options
    )


def static(**arguments):
    return TfqConfig(activation_ranges="static", **arguments)


CASES = {
    "convert: calibration is empty": lambda _: convert(calibration=[]),
    "convert: calibration must yield dicts": lambda _: convert(calibration=[3]),
    "convert: calibration yields a dict that lacks": lambda _: convert(calibration=[{"timestep": 1}]),
    "convert: calibration yields the argument": lambda _: convert(calibration=[{"image": 1}]),
    "convert: num_inference_steps must be an int": lambda _: convert(
        scheduler=DDIMScheduler(), num_inference_steps=2.5
    ),
    "convert: num_inference_steps must be at least 1": lambda _: convert(
        scheduler=DDIMScheduler(), num_inference_steps=0
    ),
    "convert: scheduler must be a diffusers scheduler": lambda _: convert(scheduler=DDIMScheduler),
    "convert: scheduler must have step": lambda _: convert(scheduler=ForeignStep()),
    "convert: scheduler … does not fit the model": lambda _: convert(
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range"), num_inference_steps=2
    ),
    "convert: … does not accept … steps": lambda _: convert(
        scheduler=DDIMScheduler(), num_inference_steps=2000
    ),
    "…: … is on '…'; this build": lambda _: call(sample=lambda x: x.to("meta")),
    "…: … must be (batch, …, height, width)": lambda _: call(sample=lambda x: x[:, :1]),
    "…: … must be … as the model": lambda _: call(sample=lambda x: x.double()),
    "…: … requires grad": lambda _: call(sample=lambda x: x.requires_grad_()),
    "graph: needs a UNet": lambda _: tfq.graph(build("plain")),
    "graph: the model is on": lambda _: graph_without_kernels(),
    "graph: a value goes to the host": lambda _: graph_with_a_host_value(),
    "convert: activation_ranges=…": lambda _: convert(config=static()),
    "convert: calibration must be an int": lambda _: convert(calibration=1.5),
    "convert: calibration must be finite": lambda _: convert(
        calibration=[{"sample": torch.full((1, 3, 16, 16), torch.nan), "timestep": 3}]
    ),
    "convert: calibration must be at least 1": lambda _: convert(calibration=0),
    "convert: calibration=… trajectories need": lambda _: convert(calibration=2),
    "convert: checkpoint= needs": lambda folder: convert(checkpoint=folder),
    "convert: config must be a TfqConfig": lambda _: convert(config={"weights": "int8"}),
    "convert: temporal=… is for UNets": lambda _: tfq.convert(
        transformer("dit"), TfqConfig(temporal="float")
    ),
    "convert: drop_tib=True drops": lambda _: conditioned(drop_tib=True),
    "convert: model is converted already": lambda _: tfq.convert(convert()),
    "convert: model must be one of": lambda _: tfq.convert(build_pipeline("DDPM").scheduler),
    "convert: num_inference_steps=… needs": lambda _: convert(num_inference_steps=3),
    "convert: parameter … has NaN": lambda _: changed("plain", damage),
    "convert: parameters must be on the CPU": lambda _: changed("plain", lambda unet: unet.to("meta")),
    "convert: parameters must be float32": lambda _: changed("plain", lambda unet: unet.half()),
    "convert: prompts= needs a pipeline": lambda _: convert("cross", prompts=["a cat"]),
    "convert: reconstruction='block' needs": lambda _: convert(
        config=TfqConfig(reconstruction="block")
    ),
    "convert: reconstruction='block' runs": lambda _: convert(
        "cross", TfqConfig(reconstruction="block", activation_ranges="dynamic"), **FEW_STEPS
    ),
    "convert: the forward of … was replaced": lambda _: changed("cross", offload),
    "convert: …": lambda _: convert("cross", static(), **FEW_STEPS),
    "convert: the projections of": lambda _: changed("cross", lambda u: u.fuse_qkv_projections()),
    "convert: … has a hook or an adapter": lambda _: changed("cross", hook),
    "convert: … has no Conv2d or Linear": lambda _: tfq.convert(torch.nn.SiLU()),
    "convert: …=… needs scheduler= or calibration= to know": lambda _: convert(
        config=TfqConfig(temporal="cache")
    ),
    "convert: calibration made no call": lambda _: convert(calibration=lambda unet: None),
    "convert: nothing to convert: all": lambda _: convert(
        config=TfqConfig(modules_to_not_convert=["down_blocks", "mid_block", "up_blocks"])
    ),
    "convert: prompts is empty": lambda _: pipe(prompts=[]),
    "convert: prompts must be a list of str, but has": lambda _: pipe(prompts=["a", 7]),
    "convert: prompts must be a list of str, got": lambda _: pipe(prompts="a cat"),
    "convert: prompts= and calibration=": lambda _: pipe(prompts=["a"], calibration=1),
    "convert: … does not run on its own": lambda _: pipe("DiT", num_inference_steps=2),
    "convert: … does not run with": lambda _: pipe("img2img", prompts=["a cat"]),
    "convert: … has no unet or transformer": lambda _: tfq.convert(
        OnlyVae(build_pipeline("DDPM").unet)
    ),
    "convert: … needs text": lambda _: pipe(num_inference_steps=2),
    "convert: … takes no prompt": lambda _: pipe("DDPM", prompts=["a cat"]),
    "convert: modules_to_not_convert has": lambda _: convert(
        config=TfqConfig(modules_to_not_convert=["up_block"])
    ),
    "convert: calibration timesteps must be finite": lambda _: convert(
        config=TfqConfig(precision="uniform"),
        calibration=[inputs(build("plain"), (float("nan"), 1.0))],
    ),
    "example_inputs: no example": lambda _: tfq.convert(
        UNet2DConditionModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
            down_block_types=CROSS[0], up_block_types=CROSS[1], attention_head_dim=4,
            cross_attention_dim=24, encoder_hid_dim=24, addition_embed_type="image",
        )
    ),
    "tfq.nn.Conv2d": lambda _: tfq.nn.Conv2d(torch.nn.Conv2d(8, 8, 3, groups=2)),
    "weight: a tfq layer holds integers": lambda _: lora_into_integers(),
    "…: input must have": lambda _: call(
        "cross", encoder_hidden_states=lambda text: text[..., :23]
    ),
    "…: weight… must be": lambda _: wrong_integers(),
    "…: a converted model stays in": lambda _: convert().bfloat16(),
    "…: height and width of": lambda _: call(sample=lambda x: x[..., :15]),
    "…: encoder_hidden_states must be": lambda _: call(
        "cross", encoder_hidden_states=lambda text: None
    ),
    "…: timestep must be finite": lambda _: call(timestep=lambda t: float("nan")),
    "enable_layerwise_casting": lambda _: convert().enable_layerwise_casting(),
    "a condition joins": lambda _: dropped_condition(),
    "temporal_blocks: needs": lambda _: tfq.temporal_blocks(torch.nn.SiLU()),
    "timestep … has no row": lambda _: call(
        converted={"config": TfqConfig(drop_tib=True), **FEW_STEPS}
    ),
    "dequantize: a converted model": lambda _: convert().dequantize(),
    "from_pretrained converts without calibration": lambda folder: float_checkpoint(
        folder, config=static()
    ),
    "from_pretrained: quantization_config of config.json": lambda folder: saved(
        folder, lambda config: [config.pop(key) for key in [*config] if key != "quant_method"]
    ),
    "from_pretrained: the checkpoint is float": lambda _: TfqQuantizer({}, pre_quantized=False),
    "from_pretrained: the weight files lack": lambda folder: saved(
        folder, weights=lambda tensors: tensors.pop("conv_in.bias")
    ),
    "from_pretrained: dtype must be": lambda folder: saved(folder, dtype=torch.half),
    "from_pretrained: … must be … by config.json": lambda folder: saved(
        folder, weights=lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)})
    ),
    "from_pretrained: … must be …, got … in the weight file": lambda folder: saved(
        folder,
        weights=lambda tensors: tensors.update(
            {"conv_in.bias": tensors["conv_in.bias"].to(torch.int32)}
        ),
    ),
    "save_pretrained: a converted model is saved": lambda folder: convert().save_pretrained(
        folder, safe_serialization=False
    ),
    "save_pretrained: the model has a LoRA": save_with_lora,
    "from_pretrained: config.json and the weights are": lambda folder: saved(
        folder, lambda config: config["rows"].update(timesteps=[7.0, 422.0])
    ),
    "from_pretrained: config.json and the weights have different plans": other_plan,
    "load_state_dict: the state is of another": lambda _: convert().load_state_dict(
        convert(config=TfqConfig(weights="int4")).state_dict()
    ),
    "quantization_config: dtype must": lambda f: saved(f, lambda config: config.update(dtype="float8")),
    "quantization_config: format version": lambda f: saved(f, lambda config: config.pop("layers")),
    "quantization_config: layers has …": lambda f: saved(f, change_layer("conv_in", name="conv_inn")),
    "quantization_config: layers has ranges": lambda f: saved(f, change_layer("to_out", ranges="timestep")),
    "quantization_config: layers has sources": lambda f: saved(f, change_layer("to_q", sources=[32, 32])),
    "quantization_config: layers, rows": lambda f: saved(f, lambda config: config.update(rows=3)),
    "quantization_config: the model was saved in": lambda folder: saved(
        folder, lambda config: config.update(format_version=99)
    ),
    "save: folder must be a folder": save_over_a_file,
    "save: folder … would be replaced": lambda folder: replace(folder, "thesis.txt"),
    "save: needs a model converted": lambda folder: tfq.save(build("plain"), folder),
    "compare: both models need": lambda _: compare({"sample_size": 8}, {}),
    "compare: models must be two of": lambda _: tfq.compare(
        build_pipeline("DDPM"), build("plain"), DDIMScheduler()
    ),
    "compare: images must be": lambda _: compare({}, {}, images=0),
    "Report.save: path must end": lambda folder: tfq.report(convert()).save(folder / "x.txt"),
    "report: needs a model converted": lambda _: tfq.report(build("plain")),
}  # fmt: skip


def row_of(key):
    """The one row that a key begins; of rows that begin alike, the key itself or the shortest."""
    found = [row for row in rows() if row == key] or [r for r in rows() if r.startswith(key)]
    assert found, f"no row begins {key!r}"
    return min(found, key=len)


# Of rows that would match nearly anything: what their case must say.
WORDS = {
    "convert: …": "the model needs encoder_hidden_states: pass calibration=, or for the UNet",
    "tfq.nn.Conv2d: … has …": "the layer has groups=2",
    "from_pretrained: dtype must be …, got …": "torch.bfloat16, got torch.float16",
}


def test_rows_of_few_words_have_some_here():
    letters = {row: len(re.sub(r"^\w+: |…|\W", "", row)) for row in map(row_of, CASES)}
    assert {row for row, count in letters.items() if count < 18} == set(WORDS)


@pytest.mark.parametrize("key", CASES)
def test_raised(key, tmp_path):
    with pytest.raises(Exception) as caught:  # of every type; the message is what is compared
        CASES[key](tmp_path)
    error = caught.value
    messages = [str(error)]
    if isinstance(error, torch._dynamo.exc.TorchDynamoException):
        messages += str(error).split("\n")
    pattern = ".*".join(re.escape(part) for part in row_of(key).strip("`").split("…"))
    assert any(re.search(pattern + "$", m, re.DOTALL) for m in messages), (key, str(error))
    assert WORDS.get(row_of(key), "") in str(error)
    assert type(error) is not Exception


def test_every_row_has_a_case():
    assert len({row_of(key) for key in CASES}) == len(CASES)
    covered = {row_of(key) for key in (*CASES, *ELSEWHERE)}
    assert sorted(set(rows()) - covered) == []
    for key, file in ELSEWHERE.items():
        assert key in (PAGE.parents[1] / file).read_text("utf-8")

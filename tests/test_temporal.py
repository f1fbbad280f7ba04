"""The temporal path: finding it, folding it, and timesteps no row was made for."""

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from tolerance import FLOAT16_RELATIVE, MIN_UNET_SNR, assert_same_bits, assert_signal_to_noise
from unets import build, clone, image, inputs, run

import tfq
from tfq import TfqConfig
from tfq.temporal import VALUE_SLOT, TemporalEmbedding, decode_timesteps, encode_timesteps

CALIBRATED = (7, 421)
UNSEEN = 500  # nearest calibrated: 421
# Class embeddings and the like join the time embedding: nothing depends on the timestep alone.
JOINED = {
    "classes": ["class_embedding"],
    "timestep_classes": ["class_embedding"],
    "identity_classes": ["class_embedding"],
    "cross_classes": ["class_embedding"],
    "cross_classes_joined": ["class_embedding"],
    "cross_projection": ["class_embedding"],
    "cross_text": ["add_embedding"],
    "cross_text_time": ["add_embedding"],
    "cross_time_cond": ["time_embedding.cond_proj"],
}
FOLDED = [
    "plain",
    "attention",
    "resnet_type",
    "skips",
    "scale_shift",
    "skips_scale_shift",
    "fourier",
    "learned",
    "cross",
    "cross_scale_shift",
    "cross_time_act",
    "cross_post_act",
]


def calibrated(name, **config):
    """A UNet with rows for CALIBRATED, and its float original."""
    unet = build(name)
    converted = tfq.convert(clone(unet), TfqConfig(**config), calibration=[inputs(unet)])
    return converted, unet


def float_features(unet, timestep):
    """What each block of a float UNet adds, by name, recorded while it runs."""
    features = {}

    def record(name):
        return lambda module, args, output: features.__setitem__(name, output)

    handles = [
        block.time_emb_proj.register_forward_hook(record(name))
        for name, block in unet.named_modules()
        if isinstance(block, ResnetBlock2D)
    ]
    run(unet, inputs(unet, (timestep,)))
    for handle in handles:
        handle.remove()
    return features


def temporal_reasons(unet):
    """Why the projections of the timestep are no INT8 layers, according to the report."""
    names = {block["name"] for block in tfq.temporal_blocks(unet)["blocks"]}
    layers = tfq.report(unet).to_dict()["layers"]
    return {layer["reason"] for layer in layers if layer["name"] in names}


def features_of_row(unet, timestep):
    """The same of a converted UNet's row; default `time_embedding_norm` only."""
    embedding = unet.time_embedding
    row = embedding(encode_timesteps(torch.tensor([timestep])))
    widths = {block["block"]: block["width"] for block in embedding.partition["blocks"]}
    return {name: row[:, slot : slot + widths[name]] for name, slot in embedding.slots}


@pytest.mark.parametrize("name", ["plain", "attention", "cross", "scale_shift", "skips"])
def test_partition(name):
    unet = build(name)
    found = tfq.temporal_blocks(unet)
    blocks = {n: m for n, m in unet.named_modules() if type(m) is ResnetBlock2D}
    assert [block["block"] for block in found["blocks"]] == list(blocks)
    for block in found["blocks"]:
        module = blocks[block["block"]]
        assert unet.get_submodule(block["name"]) is module.time_emb_proj
        assert block["width"] == module.out_channels * (2 if "scale_shift" in name else 1)
    assert found["width"] == sum(block["width"] for block in found["blocks"])
    assert found["embedding"] == ["time_proj", "time_embedding"]
    assert found["conditions"] == []
    assert set(found) == {"embedding", "blocks", "conditions", "width"}


def test_partition_reads_adaptive_norms():
    found = tfq.temporal_blocks(build("k_blocks"))
    norms = [block["name"].split(".")[-2] for block in found["blocks"]]
    assert set(norms) == {"norm1", "norm2"} and len(norms) > 8


@pytest.mark.parametrize("name", JOINED)
def test_partition_names_what_joins(name):
    assert tfq.temporal_blocks(build(name))["conditions"] == JOINED[name]


def test_membership_is_by_type():
    unet = build("plain")
    before = tfq.temporal_blocks(unet)
    # The name alone makes no member: a module called time_emb_proj where none is read.
    unet.down_blocks[0].time_emb_proj = torch.nn.Linear(128, 32)
    unet.conv_in.time_emb_proj = torch.nn.Linear(128, 32)
    assert tfq.temporal_blocks(unet) == before

    class Renamed(ResnetBlock2D):
        pass

    block = unet.mid_block.resnets[0]
    block.__class__ = Renamed
    assert tfq.temporal_blocks(unet) == before
    block.time_emb_proj = None
    assert [b["block"] for b in tfq.temporal_blocks(unet)["blocks"]] == [
        b["block"] for b in before["blocks"] if b["block"] != "mid_block.resnets.0"
    ]


def test_partition_survives_conversion():
    unet = build("cross")
    before = tfq.temporal_blocks(unet)
    assert tfq.temporal_blocks(tfq.convert(unet)) == before


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), TimestepEmbedding(8, 8)], ids=type)
def test_partition_needs_a_unet(model):
    with pytest.raises(TypeError, match=f"TimestepEmbedding, got {type(model).__name__}"):
        tfq.temporal_blocks(model)


def test_timesteps_survive_the_cast_to_bfloat16():
    values = torch.tensor([0.0, 1, 999, 1000, 0.1, 749.25, -1.5, 3e38, 2.0**-126])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(decode_timesteps(encode_timesteps(values).to(dtype)), values)
    whole = torch.arange(1000)
    assert torch.equal(decode_timesteps(encode_timesteps(whole).bfloat16()), whole.float())
    expanded = torch.tensor([421]).expand(3)
    assert decode_timesteps(encode_timesteps(expanded)).tolist() == [421.0] * 3


@pytest.mark.parametrize(
    "name, ranges",
    [(name, "dynamic") for name in FOLDED]
    + [(name, "timestep") for name in ("attention", "scale_shift", "fourier", "cross_time_act")],
)
def test_fold_equals_the_float_path(name, ranges):
    unet = build(name)
    # One image at a time: torch's linears differ in the last bits between batch sizes.
    images = [image(inputs(unet), index) for index in range(2)]
    calibration = None if ranges == "dynamic" else images
    outputs = []
    for temporal in ("fold", "float"):
        config = TfqConfig(temporal=temporal)
        converted = tfq.convert(clone(unet), config, calibration=calibration)
        outputs.append(torch.cat([run(converted, kwargs) for kwargs in images]))
        if temporal == "fold":
            found = tfq.report(converted).to_dict()["temporal"]
            assert found["mode"] == "fold"
            assert found["mean_error"] == 0.0 and found["max_error"] == 0.0
            assert len(converted.time_embedding.slots) > 0
    assert_same_bits(*outputs, name)


@pytest.mark.parametrize("name", ["plain", "cross", "fourier", "learned", "cross_post_act"])
def test_rows_hold_the_features_of_the_float_model(name):
    converted, unet = calibrated(name)
    for timestep in CALIBRATED:
        expected = float_features(unet, timestep)
        actual = features_of_row(converted, timestep)
        assert set(actual) == set(expected)
        for block in expected:
            assert_same_bits(actual[block], expected[block], f"{block} at {timestep}")


def test_rows_hold_the_affine_map_of_scale_and_shift():
    converted, unet = calibrated("scale_shift")
    embedding = converted.time_embedding
    features = float_features(unet, 421)
    assert {name for name, _ in embedding.slots} == set(features)
    for name, slot in embedding.slots:
        scale, shift = features[name].chunk(2, dim=1)
        norm = unet.get_submodule(name).norm2
        expected = torch.cat([norm.weight * (1 + scale), norm.bias * (1 + scale) + shift], dim=1)
        actual = embedding(encode_timesteps(torch.tensor([421])))
        assert_same_bits(actual[:, slot : slot + expected.shape[1]], expected.detach(), name)


@pytest.mark.parametrize("name", ["plain", "scale_shift", "classes"])
def test_mixed_timesteps_take_their_own_rows(name):
    converted, unet = calibrated(name)
    embedding = converted.time_embedding
    timesteps = torch.tensor([421, UNSEEN, 7, 421, 3.25])
    rows = embedding(encode_timesteps(timesteps))
    single = torch.cat([embedding(encode_timesteps(t)) for t in timesteps.split(1)])
    assert_same_bits(rows, single)
    assert decode_timesteps(encode_timesteps(rows[:, 0])).tolist() == timesteps.tolist()


@pytest.mark.parametrize("ranges", ["dynamic", "timestep"])
def test_mixed_timesteps_equal_separate_calls(ranges):
    # bfloat16: there torch's own first and last convolution do not depend on the batch size.
    unet = build("plain", torch.bfloat16)
    kwargs = inputs(unet, (7, 421, UNSEEN, 7))
    calibration = None if ranges == "dynamic" else [inputs(unet)]
    converted = tfq.convert(unet, calibration=calibration)
    separate = torch.cat([run(converted, image(kwargs, i)) for i in range(4)])
    assert_same_bits(run(converted, kwargs), separate)


@pytest.mark.parametrize("kind", [int, float, torch.tensor, lambda t: torch.tensor([t, t])])
def test_every_way_to_pass_a_timestep(kind):
    converted, unet = calibrated("cross", drop_tib=True)
    kwargs = inputs(unet, (421, 421))
    expected = run(converted, kwargs)
    assert_same_bits(run(converted, kwargs | {"timestep": kind(421)}), expected)


@pytest.mark.parametrize("name", ["plain", "cross", "cross_time_act"])
def test_unseen_timestep_runs_the_kept_block(name):
    converted, unet = calibrated(name)
    parameters = [*converted.time_embedding.tib.parameters()]
    assert {p.dtype for p in parameters} == {torch.float16}
    expected = float_features(unet, UNSEEN)
    for block, feature in features_of_row(converted, UNSEEN).items():
        error = (feature - expected[block]).norm() / expected[block].norm()
        assert 0 < error < FLOAT16_RELATIVE, f"{block}: {error:.2e}"


@pytest.mark.parametrize("name", ["plain", "scale_shift", "cross_text_time", "classes"])
def test_unseen_timestep_takes_the_nearest_range(name):
    converted, unet = calibrated(name)
    embedding = converted.time_embedding
    ranges = slice(VALUE_SLOT + 1, embedding.ranges_end)
    assert embedding.values.tolist() == list(CALIBRATED)
    assert len(embedding.table[0, ranges]) > 0
    for timestep, nearest in ((UNSEEN, 1), (0, 0), (213, 0), (215, 1), (999.5, 1)):
        row = embedding(encode_timesteps(torch.tensor([timestep])))
        assert_same_bits(row[0, ranges], embedding.table[nearest, ranges], str(timestep))
    kwargs = inputs(unet, (UNSEEN, UNSEEN))
    with torch.no_grad():
        expected = unet(**kwargs).sample
    assert_signal_to_noise(run(converted, kwargs), expected, MIN_UNET_SNR[torch.float32])


@pytest.mark.parametrize("name", ["plain", "scale_shift", "cross", "classes"])
def test_dropped_block(name):
    kept, unet = calibrated(name)
    dropped, _ = calibrated(name, drop_tib=True)
    kwargs = inputs(unet)
    assert_same_bits(run(dropped, kwargs), run(kept, kwargs))
    assert [*dropped.time_embedding.parameters()] == []
    with pytest.raises(ValueError) as caught:
        run(dropped, inputs(unet, (7, 500)))
    message = str(caught.value)
    assert "[500.0]" in message and "drop_tib=True" in message and "[7.0, 421.0]" in message
    assert "timestep [7.0" not in message
    assert_same_bits(run(dropped, kwargs), run(kept, kwargs), "after the error")


@pytest.mark.parametrize("name", JOINED)
def test_conditions_stay_live(name):
    """What joins the embedding reaches the output, at calibrated timesteps too."""
    unet, seeds = build(name), (1, 2)
    converted = tfq.convert(clone(unet), calibration=[inputs(unet, seed=seed) for seed in seeds])
    assert converted.time_embedding.slots == []
    for timesteps in (CALIBRATED, (UNSEEN, 3)):
        for seed in seeds:
            kwargs = inputs(unet, timesteps, seed)
            assert_signal_to_noise(
                run(converted, kwargs),
                run(unet, kwargs),
                MIN_UNET_SNR[torch.float32],
                f"timesteps {timesteps}, seed {seed}",
            )
    assert temporal_reasons(converted) == {f"temporal block: float, as {JOINED[name][0]} joins it"}


@pytest.mark.parametrize(
    "name, temporal, reasons",
    [
        ("plain", "fold", {"folded"}),
        ("plain", "float", {"float"}),
        # ResBlocks without a fused kernel project the time embedding themselves.
        ("gelu", "fold", {"float"}),
        ("simple_cross", "fold", {"float"}),
        ("resnet_samplers", "fold", {"folded", "float"}),
        ("k_blocks", "fold", {"float, as time_embedding.cond_proj joins it"}),
    ],
)
def test_report_says_what_is_folded(name, temporal, reasons):
    converted = tfq.convert(build(name), TfqConfig(temporal=temporal))
    assert temporal_reasons(converted) == {f"temporal block: {reason}" for reason in reasons}


def test_two_classes_in_one_batch():
    converted, unet = calibrated("classes")
    kwargs = inputs(unet, (421, 421))
    kwargs["sample"] = kwargs["sample"][:1].expand(2, -1, -1, -1).contiguous()
    kwargs["class_labels"] = torch.tensor([0, 3])
    output = run(converted, kwargs)
    assert_signal_to_noise(output, run(unet, kwargs), MIN_UNET_SNR[torch.float32])
    assert not torch.equal(output[0], output[1])


def test_temporal_embedding_replaces_and_keeps_the_float_block():
    unet = build("plain")
    time_proj, embedding = unet.time_proj, unet.time_embedding
    tfq.convert(unet)
    assert isinstance(unet.time_embedding, TemporalEmbedding)
    assert unet.time_embedding.tib.time_proj is time_proj
    assert unet.time_embedding.tib.embedding is embedding
    # Without rows nothing was rounded: the block stays float32.
    assert next(embedding.parameters()).dtype is torch.float32

"""Temporal features from a cache, from a quantized block, or from whichever is closer to float."""

import pytest
import torch
from test_temporal import float_features
from tolerance import (
    FLOAT16_RELATIVE,
    MIN_UNET_SNR,
    MIN_UNSEEN_SNR,
    assert_same_bits,
    assert_signal_to_noise,
)
from torch._dynamo.testing import CompileCounterWithBackend
from unets import build, inputs, run

import tfq
from tfq import TfqConfig, reference
from tfq.features import FeatureCache, QuantizedTIB, SelectedFeatures
from tfq.temporal import encode_timesteps
from tfq.temporal_modes import cache_features, disturbance, fit_grid

CALIBRATED = (0, 7, 421, 999)
UNSEEN = 500  # nearest calibrated: 421
MODES = ("cache", "tib", "select")
SOURCES = {"cache": FeatureCache, "tib": QuantizedTIB, "select": SelectedFeatures}
NAMES = ["plain", "attention", "scale_shift", "learned", "cross_time_act", "cross_post_act"]
TAPS = [False, True]


def converted(name, **config):
    unet = build(name)
    calls = [inputs(unet, CALIBRATED)]
    config = {"precision": "uniform", **config}
    return tfq.convert(unet, TfqConfig(**config), calibration=calls)


def row(unet, *timesteps):
    return unet.time_embedding(encode_timesteps(torch.tensor(timesteps)))


def features(unet, *timesteps):
    """Features of rows, one tensor a block, as the blocks read them."""
    rows, embedding = row(unet, *timesteps), unet.time_embedding
    widths = {b["block"]: b["width"] for b in embedding.partition["blocks"]}
    return {name: rows[:, slot : slot + widths[name]] for name, slot in embedding.slots}


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def grid_error(x, q, scale, zero):
    return ((q - zero) * scale - x).double().pow(2).sum(-1)


def fit_error(x):
    q, qparams = fit_grid(x)
    assert q.dtype is torch.uint8 and q.shape == x.shape
    assert qparams.dtype is torch.float32 and qparams.shape == (len(x), 2)
    return grid_error(x, q.float(), qparams[:, :1], qparams[:, 1:])


def minmax_error(x):
    """On the 256 levels from the smallest to the largest value."""
    x = x.double()
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = (high - low) / 255
    return grid_error(x - low, ((x - low) / scale).round(), scale, 0)


@pytest.mark.parametrize("power", [1, 3], ids=["normal", "heavy"])
@pytest.mark.parametrize("width", [3, 8, 64, 640])
def test_grid_is_never_worse_than_minmax(width, power):
    x = torch.randn(50, width).pow(power) * torch.logspace(-3, 3, 50)[:, None] + torch.randn(50, 1)
    found, whole = fit_error(x), minmax_error(x)
    assert bool((found <= whole * (1 + 1e-4) + 1e-13).all())
    assert bool((found < 0.99 * whole).any()), "the search finds nothing"
    # An activation's grid contains 0 and has a whole zero-point; now and then that is luck.
    qparams = reference.qparams_from_range(x.amin(1), x.amax(1))
    q, _ = reference.quantize(x, qparams)
    assert (found / grid_error(x, q.float(), qparams[:, :1], qparams[:, 2:])).mean() < 0.9


@pytest.mark.parametrize("power", [1, 3], ids=["normal", "heavy"])
def test_grid_against_brute_force(power):
    x = torch.randn(40, 24).pow(power).double()
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2

    def least(factors, shifts):
        errors = []
        for factor in factors:
            scale = half * 2 * factor / 255
            for shift in shifts:
                zero = 127.5 - middle / scale + shift
                q = (x / scale + zero).round().clamp(0, 255)
                errors.append(grid_error(x, q, scale, zero))
        return torch.stack(errors).amin(0)

    found = fit_error(x.float())
    searched = least([1 - step / 100 for step in range(80)], [0])
    assert bool((found <= searched * (1 + 1e-3)).all()), "80 shrink factors"
    assert bool((found < 0.99 * searched).any()), "and the line of least squares"
    # Every position of the grid between two levels, too: 20 times as many candidates.
    assert (
        found / least(torch.linspace(0.3, 1.02, 145), torch.linspace(-0.5, 0.5, 11))
    ).mean() < 1.3


def test_rows_of_one_or_two_values_are_exact():
    x = torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 0.0], [-7e4, -7e4, -7e4], [1.5, -2.0, 1.5]])
    q, qparams = fit_grid(x)
    values = (q.float() - qparams[:, 1:]) * qparams[:, :1]
    assert_same_bits(values[:3], x[:3])
    torch.testing.assert_close(values[3], x[3], rtol=1e-6, atol=1e-6)


def test_rows_do_not_depend_on_each_other():
    x = torch.randn(9, 40).pow(3)
    q, qparams = fit_grid(x)
    for index in range(9):
        alone = fit_grid(x[index : index + 1])
        assert_same_bits(alone[0][0], q[index])
        assert_same_bits(alone[1][0], qparams[index])


def test_cache_gathers_its_own_grid():
    exact = [torch.randn(5, 12) * 3, torch.randn(5, 7) - 4]
    cache = cache_features(exact)
    index = torch.tensor([4, 0, 4, 2])
    found, embedded = cache.features(None, index)
    assert embedded is None
    for feature, expected in zip(found, exact, strict=True):
        error = (feature - expected[index]).pow(2).sum(1).double()
        torch.testing.assert_close(error, fit_error(expected)[index], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_features_are_close_to_float_and_rounded(name, mode):
    unet = build(name)
    model = converted(name, temporal=mode)
    assert type(model.time_embedding.source) is SOURCES[mode]
    report = tfq.report(model).to_dict()["temporal"]
    maps = report["maps"]
    assert report["mode"] == mode and maps["timesteps"] == list(CALIBRATED)
    assert maps["blocks"] == [block for block, _ in model.time_embedding.slots]
    for t, timestep in enumerate(CALIBRATED):
        expected, actual = float_features(unet, timestep), features(model, timestep)
        assert set(actual) == set(expected) == set(maps["blocks"])
        for b, block in enumerate(maps["blocks"]):
            folded = unet.get_submodule(block)
            wanted = expected[block]
            if name == "scale_shift":
                scale, shift = wanted.chunk(2, dim=1)
                weight, bias = folded.norm2.weight, folded.norm2.bias
                wanted = torch.cat([weight * (1 + scale), bias * (1 + scale) + shift], 1).detach()
            error = relative(actual[block], wanted)
            assert 0 < error < 0.02, f"{block} at {timestep}: {error:.2e}"
            assert error == pytest.approx(maps["relative"][t][b], rel=1e-3, abs=1e-7)
    assert report["max_error"] == max(map(max, maps["relative"]))
    kwargs = inputs(unet, CALIBRATED)
    assert_signal_to_noise(run(model, kwargs), run(unet, kwargs), MIN_UNET_SNR[torch.float32])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["plain", "scale_shift", "cross_time_act"])
def test_rows_of_a_mixed_batch(name, mode):
    model = converted(name, temporal=mode)
    timesteps = (421, UNSEEN, 0, 421, 3.25, 999)
    rows = row(model, *map(float, timesteps))
    assert_same_bits(rows, torch.cat([row(model, float(t)) for t in timesteps]))
    assert rows[:, 0].tolist() == list(timesteps)


@pytest.mark.parametrize("name", ["plain", "scale_shift", "cross_time_act"])
def test_unseen_timestep_of_a_cache_runs_the_float_block(name):
    unet, model = build(name), converted(name, temporal="cache")
    assert {p.dtype for p in model.time_embedding.tib.parameters()} <= {
        torch.float16,
        torch.float32,
    }
    assert model.time_embedding.tib.projections[0].weight.dtype is torch.float16
    expected = features(tfq.convert(unet), UNSEEN)  # without rows: float
    for block, feature in features(model, UNSEEN).items():
        assert 0 < relative(feature, expected[block]) < FLOAT16_RELATIVE, block


@pytest.mark.parametrize("name", ["plain", "scale_shift", "cross_time_act"])
def test_unseen_timestep_of_a_quantized_block_runs_on_the_nearest_ranges(name):
    expected = features(tfq.convert(build(name)), UNSEEN)
    tib, select = (converted(name, temporal=mode) for mode in ("tib", "select"))
    assert tib.time_embedding.tib is None and select.time_embedding.tib is None
    nearest = features(tib, 421)
    for block, feature in features(tib, UNSEEN).items():
        error = relative(feature, expected[block])
        assert 0 < error < 0.5 * relative(nearest[block], expected[block]), block
        assert_same_bits(features(select, UNSEEN)[block], feature)
    ranges = slice(1, tib.time_embedding.ranges_end)
    assert_same_bits(row(tib, UNSEEN)[:, ranges], row(tib, 421)[:, ranges])
    kwargs = inputs(build(name), (425, 3))
    float_output = run(build(name), kwargs)
    for model in (tib, select):
        assert_signal_to_noise(run(model, kwargs), float_output, MIN_UNSEEN_SNR)


def test_dropped_block_of_a_cache():
    kept, dropped = (converted("plain", temporal="cache", drop_tib=drop) for drop in TAPS)
    assert dropped.time_embedding.tib is None
    kwargs = inputs(build("plain"), CALIBRATED)
    assert_same_bits(run(dropped, kwargs), run(kept, kwargs))
    with pytest.raises(ValueError, match=r"timestep \[500.0\] has no row .*drop_tib=True"):
        run(dropped, inputs(build("plain"), (7, UNSEEN)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["plain", "scale_shift"])
def test_compiled_rows_are_one_graph(name, mode):
    torch._dynamo.reset()  # what other tests compiled of the same code
    embedding = converted(name, temporal=mode).time_embedding
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(embedding, backend=counter, fullgraph=True)
    for timestep in (*CALIBRATED, UNSEEN, 3.25):
        key = encode_timesteps(torch.tensor([float(timestep)]))
        assert_same_bits(compiled(key), embedding(key), f"timestep {timestep}")
    assert counter.frame_count == 1


def test_compiled_model_is_one_graph():
    model = converted("no_mid", temporal="select", weights="int4", reconstruction="temporal")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for timestep in (421, UNSEEN):
        kwargs = inputs(model, (timestep,))
        assert_same_bits(compiled(**kwargs).sample, run(model, kwargs), f"timestep {timestep}")
    assert counter.frame_count == 2  # and the hook that lets NaN reach the output


@pytest.mark.parametrize("tap", TAPS, ids=["plain_output", "output_tap"])
@pytest.mark.parametrize("name", ["plain", "scale_shift", "cross_time_act"])
def test_selection_is_the_better_of_the_two_everywhere(name, tap):
    options = {"weights": "int4", "reconstruction": "temporal", "fsc_output_tap": tap}
    select = converted(name, temporal="select", **options)
    tib = converted(name, temporal="tib", **options)
    cache = converted(name, temporal="cache", weights="int4")
    chosen = select.time_embedding.source.chooses_block
    expected = {
        block: torch.where(chosen[:, b : b + 1], feature, features(cache, *CALIBRATED)[block])
        for b, (block, feature) in enumerate(features(tib, *CALIBRATED).items())
    }
    for block, feature in features(select, *CALIBRATED).items():
        assert_same_bits(feature, expected[block], block)

    # Squared errors of the features themselves, before scale and shift are folded into a norm.
    float_model = build(name)
    exact = [float_features(float_model, timestep) for timestep in CALIBRATED]
    index, values = torch.arange(len(CALIBRATED)), torch.tensor(CALIBRATED).float()
    found = {}
    for mode, model in (("tib", tib), ("cache", cache), ("select", select)):
        source = model.time_embedding.source
        known = torch.ones(1, dtype=torch.bool)
        rows = [source.features(values[t : t + 1], index[t : t + 1], known)[0] for t in index]
        found[mode] = torch.stack([
            torch.stack([
                (feature - exact[t][block]).double().pow(2).sum()
                for feature, (block, _) in zip(rows[t], model.time_embedding.slots, strict=True)
            ])
            for t in index
        ])  # fmt: skip
    least = torch.minimum(found["tib"], found["cache"])
    assert bool((found["select"] <= least * (1 + 1e-4)).all())
    agrees = chosen == (found["tib"] < found["cache"])
    close = (found["tib"] / found["cache"] - 1).abs() < 1e-3
    assert bool((agrees | close).all())
    maps = tfq.report(select).to_dict()["temporal"]
    assert maps["chosen_tib_share"] == pytest.approx(chosen.double().mean().item())
    assert maps["maps"]["chosen"] == chosen.tolist()
    torch.testing.assert_close(
        torch.tensor(maps["maps"]["tau"][int(tap)]).double(), found["tib"] / found["cache"],
        rtol=1e-3, atol=0,
    )  # fmt: skip


def test_selection_takes_both():
    """Random weights; without the output tap the reconstructed block is the closer one everywhere."""
    options = {"weights": "int4", "reconstruction": "temporal", "fsc_output_tap": True}
    model = converted("plain", temporal="select", **options)
    share = tfq.report(model).to_dict()["temporal"]["chosen_tib_share"]
    assert 0 < share < 1


def test_disturbance_of_exact_features():
    tib, cache = torch.tensor([0.0, 0, 2, 3]), torch.tensor([0.0, 4, 0, 6])
    assert disturbance(tib, cache).tolist() == [1, 0, torch.inf, 0.5]


def test_output_tap_rounds_the_features_of_the_block():
    plain, tapped = (converted("plain", temporal="tib", fsc_output_tap=tap) for tap in TAPS)
    for block, feature in features(tapped, 421).items():
        other = features(plain, 421)[block]
        qparams = reference.qparams_from_range(other.amin(1), other.amax(1))
        q, _ = reference.quantize(other, qparams)
        assert_same_bits(feature, (q.float() - qparams[:, 2:]) * qparams[:, :1], block)
        assert not torch.equal(feature, other)


@torch.no_grad()
def test_modes_are_paths_of_their_own():
    """Damage to what one mode stores shows in the rows of that mode, and in no other's."""

    def rows_after(mode, damage):
        options = {}
        if mode in ("tib", "select"):
            options = {"reconstruction": "temporal", "fsc_output_tap": True}
        model = converted("plain", temporal=mode, weights="int4", **options)
        before = features(model, *CALIBRATED)
        damage(model.time_embedding)
        after = features(model, *CALIBRATED)
        changed = torch.stack([(before[k] != after[k]).any(1) for k in before], dim=1)
        return changed, model.time_embedding

    def break_cache(embedding):
        getattr(embedding.source, "cache", embedding.source).q.bitwise_xor_(1)

    def break_block(embedding):
        block = getattr(embedding.source, "block", embedding.source)
        for projection in block.tib.projections:
            projection.weight_scale.mul_(2)

    def break_float(embedding):
        for projection in embedding.tib.projections:
            projection.weight.zero_()

    assert rows_after("cache", break_cache)[0].all()
    assert not rows_after("cache", break_float)[0].any()
    assert rows_after("tib", break_block)[0].all()
    assert not rows_after("fold", break_float)[0].any()
    changed, embedding = rows_after("select", break_block)
    assert torch.equal(changed, embedding.source.chooses_block)
    changed, embedding = rows_after("select", break_cache)
    assert torch.equal(changed, ~embedding.source.chooses_block)


@pytest.mark.parametrize("weights, bits", [("int8", 8), ("int4", 4)])
def test_quantized_block_stores_integers(weights, bits):
    model = converted("plain", temporal="tib", weights=weights)
    embedding = model.time_embedding
    layers = embedding.source.layers
    assert len(layers) == 1 + len(embedding.slots)
    assert {layer.weight_bits for layer in layers} == {bits}
    assert len(embedding.source.ranges.unique(dim=0)) == len(CALIBRATED), "ranges by timestep"
    floats = [n for n, p in embedding.named_parameters() if p.dim() == 2]
    assert floats == ["source.tib.embedding.linear_1.weight"]
    layers = {layer["name"]: layer for layer in tfq.report(model).to_dict()["layers"]}
    for name in ("time_embedding.linear_2", "mid_block.resnets.0.time_emb_proj"):
        assert layers[name]["path"] == "gemm_s8" and layers[name]["weight_bits"] == bits
        assert layers[name]["range"] == "timestep", name
    assert layers["time_embedding.linear_1"]["path"] == "torch"


def test_backends_agree():
    for mode in MODES:
        native, other = (
            converted("plain", temporal=mode, backend=backend)
            for backend in ("native", "reference")
        )
        for timestep in (421, UNSEEN):
            for block, feature in features(native, timestep).items():
                assert_same_bits(features(other, timestep)[block], feature, f"{mode} {block}")


@pytest.mark.parametrize("mode", MODES)
def test_modes_need_timesteps(mode):
    unet = build("plain")
    with pytest.raises(ValueError, match=f"temporal='{mode}' needs scheduler= or calibration="):
        tfq.convert(unet, TfqConfig(temporal=mode))
    assert tfq.convert(unet) is unet


@pytest.mark.parametrize("mode", MODES)
def test_features_that_depend_on_more_than_the_timestep_stay_float(mode):
    unet, model = build("classes"), converted("classes", temporal=mode)
    assert model.time_embedding.source is None and model.time_embedding.slots == []
    kwargs = inputs(unet, (7, UNSEEN))
    assert_signal_to_noise(run(model, kwargs), run(unet, kwargs), MIN_UNET_SNR[torch.float32])
    reasons = {layer["reason"] for layer in tfq.report(model).to_dict()["layers"]}
    assert "temporal block: float, as class_embedding joins it" in reasons


@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_read_the_embedding_itself(mode):
    """Beside fused blocks there are some that are handed the plain time embedding."""
    unet, model = build("resnet_samplers"), converted("resnet_samplers", temporal=mode)
    assert model.time_embedding.slots and model.time_embedding.embedding_width
    for timesteps in ((7, 421), (UNSEEN, 999)):
        kwargs = inputs(unet, timesteps)
        output, expected = run(model, kwargs), run(unet, kwargs)
        assert_signal_to_noise(output, expected, MIN_UNET_SNR[torch.float32], str(timesteps))

"""Recorded ranges: each estimator against the values themselves, and the table they end up in."""

import pytest
import torch
from unets import build, clone, inputs

import tfq
from tfq import TfqConfig, reference
from tfq.quantizer import QPARAMS_WIDTH, InputQuantizer
from tfq.ranges import RangeRecorder
from tfq.temporal import encode_timesteps

ESTIMATORS = ("minmax", "ema", "percentile", "mse")
SHRINK = [1 - step / 100 for step in range(80)]


def heavy_images(count, size=(8, 20, 20)):
    """Images with long tails, each of another magnitude."""
    return torch.randn(count, *size).pow(3) * torch.rand(count, 1, 1, 1).add(0.5)


def record(estimator, images, timesteps, batches=1):
    """A recorder that saw the images at their timesteps, its quantizer, and the values it was given."""
    recorder, quantizer = RangeRecorder(estimator), object()
    values = []
    for x, t in zip(images.chunk(batches), timesteps.chunk(batches), strict=True):
        recorder.see(None, (encode_timesteps(t),))
        q, qparams = reference.quantize(x.contiguous(memory_format=torch.channels_last))
        recorder.add(quantizer, t[:, None].float(), q, qparams)
        scale, _, zero = (p.view(-1, 1, 1, 1) for p in qparams.unbind(1))
        values += [*((q.double() - zero) * scale.double())]
    return recorder, quantizer, values


def ends(values):
    """Ends of the grid that each image's own range spans: within a step of its extremes."""
    return [(v.min().item(), v.max().item()) for v in values]


def squared_error(values, low, high):
    """Of values on a grid over [low, high]: a step's own share inside, the distance outside."""
    step = (high - low) / 255
    beyond = torch.where(values > high, values - high, torch.where(values < low, low - values, 0.0))
    return torch.where(beyond > 0, beyond**2, step**2 / 12).sum().item()


def rounding_error(values, low, high):
    """What quantizing with the range really costs."""
    qparams = reference.qparams_from_range(torch.tensor([low]), torch.tensor([high])).float()
    q, _ = reference.quantize(values.float().view(1, 1, 1, -1), qparams)
    return ((q.flatten() - qparams[0, 2]) * qparams[0, 0] - values).pow(2).sum().item()


@pytest.mark.parametrize("batches", [1, 3])
def test_minmax(batches):
    recorder, quantizer, values = record("minmax", heavy_images(6), torch.full((6,), 3), batches)
    lows, highs = zip(*ends(values), strict=True)
    found = recorder.range(quantizer, [3.0])
    assert found == pytest.approx((min(lows), max(highs)), rel=1e-6)


def test_ema_moves_by_a_twentieth_an_image():
    recorder, quantizer, values = record("ema", heavy_images(5), torch.full((5,), 3), 5)
    low, high = ends(values)[0]
    for next_low, next_high in ends(values)[1:]:
        low += 0.05 * (next_low - low)
        high += 0.05 * (next_high - high)
    assert recorder.range(quantizer, [3.0]) == pytest.approx((low, high), rel=1e-6)
    whole = record("minmax", heavy_images(5), torch.full((5,), 3))
    assert whole[0].range(whole[1], [3.0]) != pytest.approx((low, high), rel=1e-3)


def test_percentile_leaves_out_one_value_in_20000_a_side():
    images = heavy_images(7, (9, 30, 31))
    recorder, quantizer, values = record("percentile", images, torch.full((7,), 3))
    ascending = torch.cat([v.flatten() for v in values]).sort().values
    outside = int(len(ascending) * 0.5e-4)  # of each side: not a whole number here
    assert outside > 1 and len(ascending) * 0.5e-4 % 1 > 0.1
    expected = ascending[outside].item(), ascending[-1 - outside].item()
    assert recorder.range(quantizer, [3.0]) == pytest.approx(expected, rel=1e-6)
    assert abs(expected[1]) < 0.9 * ascending[-1].item(), "there is a tail to leave out"


def test_percentile_keeps_zero():
    images = torch.rand(2, 4, 30, 30) + 5
    recorder, quantizer, _ = record("percentile", images, torch.full((2,), 3))
    low, high = recorder.range(quantizer, [3.0])
    assert low == 0 and 5.9 < high < 6.01
    recorder, quantizer, _ = record("percentile", -images, torch.full((2,), 3))
    low, high = recorder.range(quantizer, [3.0])
    assert high == 0 and -6.01 < low < -5.9


@pytest.mark.parametrize("power", [1, 3], ids=["normal", "heavy"])
def test_mse_is_the_best_of_80_shrink_factors(power):
    images = torch.randn(4, 8, 20, 20).pow(power)
    recorder, quantizer, values = record("mse", images, torch.full((4,), 3))
    values = torch.cat([v.flatten() for v in values])
    low, high = values.min().item(), values.max().item()
    best = min(SHRINK, key=lambda factor: squared_error(values, low * factor, high * factor))
    found = recorder.range(quantizer, [3.0])
    assert found == pytest.approx((low * best, high * best), rel=1e-6)
    # The estimated error stands for the real one.
    errors = {f: rounding_error(values, low * f, high * f) for f in SHRINK}
    assert errors[best] < 1.05 * min(errors.values())
    assert errors[best] <= errors[1.0]
    if power == 3:
        assert best < 1 and errors[best] < 0.99 * errors[1.0], "tails are cut"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_images_are_told_apart_by_their_timestep(estimator):
    images, timesteps = heavy_images(6), torch.tensor([5, 9, 5, 700, 9, 5])
    recorder, quantizer, _ = record(estimator, images, timesteps, 2)
    assert recorder.timesteps == [5.0, 9.0, 700.0]
    for timestep in (5, 9, 700):
        mask = timesteps == timestep
        alone, other, _ = record(estimator, images[mask], timesteps[mask])
        assert recorder.range(quantizer, [timestep]) == alone.range(other, [timestep])
    # All timesteps: as if the images had come at one, in ascending order of their timesteps.
    order = timesteps.argsort(stable=True)
    together, other, _ = record(estimator, images[order], torch.zeros(6))
    assert recorder.range(quantizer, recorder.timesteps) == together.range(other, [0.0])


def test_what_was_not_recorded():
    recorder, quantizer, _ = record("minmax", heavy_images(2), torch.tensor([5, 9]))
    assert recorder.range(object(), [5.0]) is None
    assert recorder.range(quantizer, [5.0, 6.0]) is None
    assert RangeRecorder("minmax").timesteps == []


def test_tokens_are_recorded_as_images_are():
    tokens = torch.randn(3, 40, 24).pow(3)
    ranges = []
    for x in (tokens, tokens.transpose(1, 2).unflatten(2, (5, 8))):
        recorder, quantizer = RangeRecorder("percentile"), object()
        recorder.add(quantizer, torch.full((3, 1), 4.0), *reference.quantize(x, groups=3))
        ranges.append(recorder.range(quantizer, [4.0]))
    assert ranges[0] == ranges[1]


def row_quantizers(unet):
    found = [
        m.input for m in unet.modules() if isinstance(getattr(m, "input", None), InputQuantizer)
    ]
    return [quantizer for quantizer in found if quantizer.slot is not None]


def spans(unet):
    """Low and high ends of each quantizer and row of the table."""
    table = unet.time_embedding.table
    slots = [q.slot for q in row_quantizers(unet)]
    qparams = torch.stack([table[:, slot : slot + QPARAMS_WIDTH] for slot in slots])
    return -qparams[..., 2] * qparams[..., 0], (255 - qparams[..., 2]) * qparams[..., 0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_static_is_one_range_over_all_timesteps(estimator):
    unet = build("attention")
    calls = [inputs(unet, (7, 421, 900)), inputs(unet, (900, 30), seed=2)]
    made = {}
    for ranges in ("static", "timestep"):
        config = TfqConfig(activation_ranges=ranges, range_estimator=estimator, precision="uniform")
        made[ranges] = tfq.convert(clone(unet), config, calibration=calls)
        assert made[ranges].time_embedding.values.tolist() == [7.0, 30.0, 421.0, 900.0]
        assert {quantizer.ranges for quantizer in row_quantizers(made[ranges])} == {ranges}
    (low, high), (lows, highs) = spans(made["static"]), spans(made["timestep"])
    assert torch.equal(low, low[:, :1].expand_as(low)) and torch.equal(
        high, high[:, :1].expand_as(high)
    )
    assert bool((highs.amax(1) - highs.amin(1) > 0).any()), "timesteps differ"
    if estimator == "minmax":
        width = (high - low)[:, 0]
        expected = highs.amax(1) - lows.amin(1)
        assert bool(((width / expected - 1).abs() < 0.01).all())  # an end moves by half a step
    else:
        # A step of the search is 1 % of the whole range, more of a shrunk one.
        assert bool((high[:, 0] <= highs.amax(1) * 1.02).all())


@pytest.mark.parametrize("estimator", ["ema", "percentile", "mse"])
def test_estimators_reach_the_table(estimator):
    unet = build("plain")
    calls = [inputs(unet, (7, 7, 7))]
    tables = [
        tfq.convert(
            clone(unet), TfqConfig(range_estimator=e), calibration=calls
        ).time_embedding.table
        for e in ("minmax", estimator)
    ]
    assert not torch.equal(*tables)
    assert torch.isfinite(tables[1]).all()


def test_repeated_timesteps_make_one_row():
    unet = build("plain")
    calls = [inputs(unet, (7, 421)), inputs(unet, (421, 421), seed=2), inputs(unet, (7, 7), seed=3)]
    config = TfqConfig(precision="uniform")  # "auto" would correct biases by what it saw
    once = tfq.convert(clone(unet), config, calibration=calls)
    assert once.time_embedding.values.tolist() == [7.0, 421.0]
    assert len(once.time_embedding.table) == 2
    # The range of a repeated timestep covers all of its images.
    first = tfq.convert(clone(unet), config, calibration=calls[:1])
    (lows, highs), (first_lows, first_highs) = spans(once), spans(first)
    step = (highs - lows) / 255
    assert bool((lows <= first_lows + step).all()) and bool((highs >= first_highs - step).all())
    assert bool((highs > first_highs + step).any())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_timesteps_that_are_no_numbers(value):
    unet = build("plain")
    call = inputs(unet, (7, 421))
    call["timestep"] = torch.tensor([7.0, value])
    with pytest.raises(ValueError, match=f"convert: calibration .*timestep.* finite, got {value}"):
        tfq.convert(unet, calibration=[call])
    assert tfq.convert(unet, calibration=[inputs(unet)]) is unet


def test_ranges_of_a_constant_input():
    """An image of zeros has the range [0, 0], which is no reason to divide by it."""
    for estimator in ESTIMATORS:
        recorder, quantizer, _ = record(estimator, torch.zeros(2, 3, 4, 4), torch.full((2,), 3))
        low, high = recorder.range(quantizer, [3.0])
        qparams = reference.qparams_from_range(torch.tensor([low]), torch.tensor([high]))
        assert torch.isfinite(qparams).all() and qparams[0, 0] > 0

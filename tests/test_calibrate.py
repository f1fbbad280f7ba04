"""Self-calibration: how many calls it makes, what it records, which ranges come out."""

import itertools

import diffusers
import pytest
import torch
from tolerance import (
    MIN_UNET_SNR,
    QPARAMS_RELATIVE,
    assert_qparams_close,
    assert_same_bits,
    assert_signal_to_noise,
)
from unets import build, clone, image, inputs, run

import tfq
from tfq import TfqConfig
from tfq.calibrate import run_trajectory, spread_images
from tfq.quantizer import QPARAMS_WIDTH, InputQuantizer
from tfq.ranges import RangeRecorder
from tfq.reference import qparams_from_range
from tfq.temporal import VALUE_SLOT

STEPS = 4
UNIFORM = TfqConfig(precision="uniform")  # no call but those of the calibration
# Scheduler -> UNet calls for STEPS steps: the second-order ones visit some timesteps twice, and PNDM
# starts with 3 Runge-Kutta steps of 4 calls.
SCHEDULERS = {
    "DDIMScheduler": STEPS,
    "DDPMScheduler": STEPS,
    "EulerDiscreteScheduler": STEPS,
    "EulerAncestralDiscreteScheduler": STEPS,
    "DPMSolverMultistepScheduler": STEPS,
    "DPMSolverSinglestepScheduler": STEPS,
    "UniPCMultistepScheduler": STEPS,
    "LCMScheduler": STEPS,
    "FlowMatchEulerDiscreteScheduler": STEPS,
    "EDMEulerScheduler": STEPS,
    "HeunDiscreteScheduler": 2 * STEPS - 1,
    "KDPM2DiscreteScheduler": 2 * STEPS - 1,
    "PNDMScheduler": 12 + STEPS - 3,
}


def count_calls(unet):
    """List that gets the timesteps of each real call (shapes are traced in one on fake tensors)."""
    calls = []

    def hook(module, args, kwargs):
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        if type(sample) is torch.Tensor:
            timestep = torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else None))
            calls.append(timestep.float().expand(sample.shape[0]).tolist())

    unet.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def quantizers(unet):
    """Inputs of layers with a place in a row, by layer name."""
    found = {}
    for name, module in unet.named_modules():
        quantizer = getattr(module, "input", None)
        if isinstance(quantizer, InputQuantizer) and quantizer.slot is not None:
            found[name] = quantizer
    assert found
    return found


def ranges(qparams):
    """Ends of the ranges of parameters ``(rows, 3)``."""
    scale, zero_point = qparams[:, 0], qparams[:, 2]
    return -zero_point * scale, (255 - zero_point) * scale


def table_ranges(unet, quantizer):
    table = unet.time_embedding.table
    return ranges(table[:, quantizer.slot : quantizer.slot + QPARAMS_WIDTH])


class Observed(RangeRecorder):
    """Every recorder of a conversion ends up in `made`."""

    made = []

    def __init__(self, estimator):
        super().__init__(estimator)
        self.made.append(self)


@pytest.fixture
def observed(monkeypatch):
    monkeypatch.setattr("tfq.ranges.RangeRecorder", Observed)
    Observed.made.clear()
    return Observed.made


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_call_per_step(name):
    unet = build("plain")
    scheduler = getattr(diffusers, name)()
    calls = count_calls(unet)
    tfq.convert(unet, UNIFORM, scheduler=scheduler, num_inference_steps=STEPS)
    scheduler.set_timesteps(STEPS)
    expected = [t.item() for t in scheduler.timesteps]
    assert len(expected) == SCHEDULERS[name]
    assert calls == [[t] * TfqConfig().calibration_samples for t in expected]
    embedding = unet.time_embedding
    assert embedding.values.tolist() == sorted(set(expected))
    assert torch.isfinite(embedding.table).all()
    assert torch.equal(embedding.table[:, VALUE_SLOT], embedding.values)
    # The rows are found again by what the sampler passes.
    calls.clear()
    run_trajectory(unet, getattr(diffusers, name)(), STEPS, 2, seed=5)
    assert len(calls) == SCHEDULERS[name]
    assert {t for call in calls for t in call} == set(embedding.values.tolist())


def test_default_number_of_steps():
    unet = build("no_mid", sample_size=4)
    calls = count_calls(unet)
    config = TfqConfig(calibration_samples=1, precision="uniform")
    tfq.convert(unet, config, scheduler=diffusers.DDIMScheduler())
    assert len(calls) == 50


@pytest.mark.parametrize("config", [{}, {"activation_ranges": "static"}], ids=["auto", "static"])
def test_table_covers_what_was_seen(config, observed):
    unet = build("attention")
    tfq.convert(
        unet, TfqConfig(**config), scheduler=diffusers.DDIMScheduler(), num_inference_steps=3
    )
    (recorder,) = observed
    assert (
        recorder.timesteps == unet.time_embedding.values.tolist() and len(recorder.timesteps) == 3
    )
    for name, quantizer in quantizers(unet).items():
        assert quantizer.recorder is None
        seen = [recorder.range(quantizer, [timestep]) for timestep in recorder.timesteps]
        lows, highs = (torch.tensor(ends, dtype=torch.float32) for ends in zip(*seen, strict=True))
        low, high = table_ranges(unet, quantizer)
        if config:
            assert quantizer.ranges == "static"
            lows, highs = lows.min()[None], highs.max()[None]
            assert low.unique().numel() == high.unique().numel() == 1
        else:
            assert quantizer.ranges == "timestep"
        step = (highs - lows) / 255
        assert bool((low <= lows + step).all()) and bool((high >= highs - step).all()), name
        width = (high - low) / (highs - lows)
        assert bool(((width - 1).abs() < 2 * QPARAMS_RELATIVE).all()), name
        # Timesteps differ, so one range for all is wider than each of them.
        if not config:
            assert high.unique().numel() > 1


def test_ranges_are_those_of_the_inputs():
    """Against the largest inputs that a float model's layers see on the same calls."""
    unet = build("plain")
    kwargs = inputs(unet, (7, 421, 7, 421))
    seen = {}

    def record(name):
        def hook(module, args):
            for timestep, x in zip(kwargs["timestep"].tolist(), args[0], strict=True):
                low, high = seen.get((name, timestep), (0.0, 0.0))
                seen[name, timestep] = (min(low, x.min().item()), max(high, x.max().item()))

        return hook

    handles = [
        module.register_forward_pre_hook(record(name))
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    run(unet, kwargs)
    for handle in handles:
        handle.remove()
    tfq.convert(unet, calibration=[kwargs])
    for name, quantizer in quantizers(unet).items():
        if "attentions" in name:
            continue
        lows, highs = table_ranges(unet, quantizer)
        for index, timestep in enumerate((7, 421)):
            low, high = seen[name, timestep]
            width = high - low
            assert abs(lows[index] - low) < 0.1 * width, name
            assert abs(highs[index] - high) < 0.1 * width, name


def test_iterable_of_arguments(observed):
    unet = build("cross")
    batches = [inputs(unet, (7, 421)), inputs(unet, (900,), seed=2)]
    calls = count_calls(unet)
    tfq.convert(unet, UNIFORM, calibration=(batch for batch in batches))
    assert calls == [[7.0, 421.0], [900.0]]
    assert unet.time_embedding.values.tolist() == [7.0, 421.0, 900.0]
    assert all(quantizer.ranges == "timestep" for quantizer in quantizers(unet).values())
    assert observed[0].timesteps == [7.0, 421.0, 900.0]


def test_callable_gets_the_object_itself():
    unet = build("cross")
    calls, given = count_calls(unet), []

    def calibration(model):
        given.append(model)
        for timestep in (5, 300):
            model(**inputs(model, (timestep, timestep)))

    tfq.convert(unet, UNIFORM, calibration=calibration)
    assert given == [unet] and len(calls) == 2
    assert unet.time_embedding.values.tolist() == [5.0, 300.0]


def test_iterable_and_callable_agree():
    unet = build("cross")
    batches = [inputs(unet, (7, 421)), inputs(unet, (7,), seed=2)]

    def calibration(model):
        for batch in batches:
            model(**batch)

    tables = [
        tfq.convert(clone(unet), calibration=c).time_embedding.table for c in (batches, calibration)
    ]
    assert_same_bits(*tables)


def test_number_of_trajectories(observed):
    unet = build("plain")
    config = TfqConfig(calibration_samples=2, precision="uniform")
    arguments = {"scheduler": diffusers.DDIMScheduler(), "num_inference_steps": 2}
    calls = count_calls(unet)
    converted = [tfq.convert(clone(unet), config, calibration=1, **arguments)]
    assert len(calls) == 2 and {len(call) for call in calls} == {2}
    calls.clear()
    converted.append(tfq.convert(clone(unet), config, calibration=3, **arguments))
    assert len(calls) == 3 * 2
    ends = [
        {
            (name, timestep): recorder.range(quantizer, [timestep])
            for name, quantizer in quantizers(model).items()
            for timestep in recorder.timesteps
        }
        for model, recorder in zip(converted, observed, strict=True)
    ]
    keys = set(ends[0])
    assert keys == set(ends[1]) and None not in [*ends[0].values(), *ends[1].values()]
    # The first of the three trajectories is the one alone.
    assert all(ends[1][k][0] <= ends[0][k][0] and ends[1][k][1] >= ends[0][k][1] for k in keys)
    assert any(ends[1][k] != ends[0][k] for k in keys)


def test_data_wins_over_the_scheduler():
    unet = build("classes")
    calls = count_calls(unet)
    tfq.convert(unet, UNIFORM, scheduler=diffusers.DDIMScheduler(), calibration=[inputs(unet)])
    assert calls == [[7.0, 421.0]]


def test_seed_and_repetition():
    unet, arguments = build("classes"), {"num_inference_steps": 2}

    def table(**config):
        scheduler = diffusers.DDPMScheduler()
        converted = tfq.convert(clone(unet), TfqConfig(**config), scheduler=scheduler, **arguments)
        return converted.time_embedding.table

    torch.manual_seed(1)
    first = table()
    torch.manual_seed(2)
    assert_same_bits(table(), first)
    assert not torch.equal(table(seed=1), first)
    assert not torch.equal(table(calibration_samples=3), first)


def test_dynamic_ranges_with_a_scheduler_only_make_rows():
    unet = build("plain")
    calls = count_calls(unet)
    config = TfqConfig(activation_ranges="dynamic", precision="uniform")
    tfq.convert(unet, config, scheduler=diffusers.DDIMScheduler(), num_inference_steps=3)
    assert calls == []
    assert unet.time_embedding.values.numel() == 3
    assert {quantizer.ranges for quantizer in quantizers(unet).values()} == {"dynamic"}
    dynamic = tfq.convert(build("plain"))
    kwargs = inputs(unet, (333, 666))
    assert_same_bits(run(unet, kwargs), run(dynamic, kwargs))


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_models_that_predict_a_variance(variance):
    unet = build("plain", out_channels=6)
    scheduler = diffusers.DDPMScheduler(variance_type=variance)
    tfq.convert(unet, scheduler=scheduler, num_inference_steps=2)
    assert unet.time_embedding.values.numel() == 2


def test_blocks_that_pass_no_row_on_still_get_features():
    """UNets none of whose layers sees a row have dynamic ranges, and rows for the timesteps."""
    unet = build("simple_cross")
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    tfq.convert(unet, TfqConfig(drop_tib=True), calibration=[kwargs])
    assert unet.time_embedding.values.tolist() == [7.0, 421.0]
    assert_signal_to_noise(run(unet, kwargs), expected, MIN_UNET_SNR[torch.float32])
    modes = {layer["range"] for layer in tfq.report(unet).to_dict()["layers"]}
    assert modes <= {"dynamic", "dynamic per token", None}


def test_mixed_batch_records_each_image_at_its_timestep():
    """As image by image, but for what torch's convolutions make of another batch size."""
    unet = build("plain")
    kwargs = inputs(unet, (7, 421, 7))
    images = [image(kwargs, index) for index in range(3)]
    mixed, single = (
        tfq.convert(clone(unet), UNIFORM, calibration=calibration)
        for calibration in ([kwargs], images)
    )
    assert torch.equal(mixed.time_embedding.values, single.time_embedding.values)
    expected = quantizers(single)
    for name, quantizer in quantizers(mixed).items():
        rows = [
            at.table[:, place.slot : place.slot + QPARAMS_WIDTH]
            for at, place in (
                (mixed.time_embedding, quantizer),
                (single.time_embedding, expected[name]),
            )
        ]
        assert_qparams_close(*rows, name, relative=1e-4)


@pytest.mark.parametrize(
    "low, high, zero_point",
    [
        (0, 0, 0),
        (0, 2.55, 0),
        (-2.55, 0, 255),
        (-1, 1, 128),
        (-1e-40, 1e-40, 0),
        (-3e38, 3e38, 128),
    ],
)
def test_parameters_of_a_range(low, high, zero_point):
    ends = torch.tensor([[low], [high]], dtype=torch.float32)
    ((scale, inverse, zero),) = qparams_from_range(*ends).tolist()
    assert scale > 0 and inverse > 0 and abs(zero - zero_point) <= 1
    assert zero == round(zero) and 0 <= zero <= 255
    assert torch.isfinite(torch.tensor([scale, inverse])).all()
    if high > 1e-30:
        assert -zero * scale <= low + scale and (255 - zero) * scale >= high - scale


def test_progress_of_calibration():
    unet, calls = build("plain"), []
    given = [{**inputs(unet), "timestep": t} for t in (3, 5)]
    config = TfqConfig(precision="uniform", calibration_samples=1)
    for calibration in (given, iter(given)):
        tfq.convert(
            clone(unet), config, calibration=calibration, progress=lambda *call: calls.append(call)
        )
    expected = [(1, 2), (2, 2), (1, None), (2, None)]
    assert calls == [(*call, "calibration") for call in expected]
    calls.clear()
    tfq.convert(
        clone(unet),
        config,
        scheduler=diffusers.DDIMScheduler(),
        num_inference_steps=2,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 2, "calibration"), (2, 2, "calibration")]


@pytest.mark.parametrize("steps, count", [(20, 12), (50, 12), (12, 12), (5, 12), (3, 1)])
def test_images_are_spread_from_the_first_call_to_the_last(steps, count):
    calls = [
        {"sample": torch.arange(4.0).view(4, 1, 1, 1), "timestep": torch.full((4,), t)}
        for t in range(steps)
    ]
    picked = spread_images(calls, count)
    timesteps = [call["timestep"][0].item() for call in picked]
    assert len(picked) == min(steps, count) and timesteps == sorted(set(timesteps))
    assert timesteps[0] == 0 and (count == 1 or timesteps[-1] == steps - 1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(timesteps)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    images = [call["sample"].flatten().tolist() for call in picked]
    assert all(len(image) == max(1, count // steps) for image in images)
    assert len({tuple(image) for image in images}) == min(4, len(picked)), "rotated"

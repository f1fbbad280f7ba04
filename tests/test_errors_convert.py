"""What `convert` and a converted model refuse, what they say, and that nothing has changed."""

import contextlib
import importlib

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from tolerance import assert_same_bits
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig
from tfq.lowering import Undo
from tfq.models import CLASS_NAMES

FEW_STEPS = {"scheduler": DDIMScheduler(), "num_inference_steps": 2}


class ForeignStep:
    """A scheduler whose step needs more than a model's output (as diffusers' KarrasVeScheduler)."""

    def set_timesteps(self, num_inference_steps):
        raise AssertionError("the signature of step is checked first")

    def step(self, model_output, sigma_hat, sigma_prev, sample_hat):
        raise AssertionError("never called")


class State:
    """All that a user can see of a model, and whether it is still so."""

    def __init__(self, model):
        self.model = model
        self.kwargs = inputs(model)
        self.output = run(model, self.kwargs)
        self.modules = self._modules()
        self.tensors = {name: (id(t), t.clone()) for name, t in self._tensors()}
        self.config = dict(model.config)

    def _tensors(self):
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    def _modules(self):
        return [
            (name, id(module), type(module), module.training, sorted(module.__dict__),
             [id(hook) for hooks in (module._forward_hooks, module._forward_pre_hooks)
              for hook in hooks.values()],
             id(getattr(module, "processor", None)), list(module._modules), list(module.state_dict()),
             [p.requires_grad for p in module.parameters()])
            for name, module in self.model.named_modules()
        ]  # fmt: skip

    def check(self):
        assert dict(self.model.config) == self.config
        now = self._modules()
        assert len(now) == len(self.modules)
        for actual, expected in zip(now, self.modules, strict=True):
            assert actual == expected
        tensors = dict(self._tensors())
        assert set(tensors) == set(self.tensors)
        for name, (identity, value) in self.tensors.items():
            assert id(tensors[name]) == identity, name
            assert_same_bits(tensors[name].detach(), value.detach(), name)
        assert_same_bits(run(self.model, self.kwargs), self.output)
        with pytest.raises(TypeError, match="needs a model converted by tfq.convert"):
            tfq.report(self.model)


def prepared(name, dtype=torch.float32):
    """A UNet with something to lose: training mode, frozen and unfrozen parameters, hooks."""
    unet = build(name, dtype).train()
    unet.conv_in.requires_grad_(False)
    unet.mid_block.eval()
    unet.register_forward_hook(lambda module, args, output: None)
    unet.up_blocks[0].register_forward_pre_hook(lambda module, args: None)
    return unet


@contextlib.contextmanager
def refused(unet, error, *words):
    """`error` with all `words` in its message, and the model as it was."""
    state = State(unet)
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error, repr(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    state.check()


def test_the_state_sees_a_conversion():
    unet = prepared("plain")
    state = State(unet)
    state.check()
    tfq.convert(unet)
    with pytest.raises(AssertionError):
        state.check()


@pytest.mark.parametrize("model", [None, "unet", {}, torch.zeros(3), build, Undo])
def test_not_a_module(model):
    name = "the class Undo" if model is Undo else type(model).__name__
    with pytest.raises(TypeError) as caught:
        tfq.convert(model)
    assert str(caught.value) == f"convert: model must be one of {CLASS_NAMES}; got {name}"


@pytest.mark.parametrize(
    "model, error, word",
    [
        (torch.nn.Sequential(), ValueError, "Sequential has no Conv2d or Linear"),
        (torch.nn.Sequential(torch.nn.SiLU()), ValueError, "nothing to convert"),
        (
            torch.nn.Linear(4, 4),
            TypeError,
            f"must be one of {CLASS_NAMES}; got Linear",
        ),
    ],
)
def test_nothing_it_can_convert(model, error, word):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=word):
        tfq.convert(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_everything_excluded():
    unet = prepared("plain")
    names = [name for name, _ in unet.named_children()]
    with refused(unet, ValueError, "nothing to convert", "conv_in", "layers stay float"):
        tfq.convert(unet, TfqConfig(modules_to_not_convert=names))


def test_unknown_name_in_modules_to_not_convert():
    unet = prepared("plain")
    with refused(unet, ValueError, "modules_to_not_convert", "'midblock'", "no module"):
        tfq.convert(unet, TfqConfig(modules_to_not_convert=("mid_block", "midblock")))


@pytest.mark.parametrize("arguments", [{}, FEW_STEPS], ids=["dynamic", "timestep"])
def test_converted_already(arguments):
    unet = tfq.convert(build("plain"), **arguments)
    kwargs = inputs(unet)
    output, report = run(unet, kwargs), str(tfq.report(unet))
    with pytest.raises(ValueError, match="convert: model is converted already"):
        tfq.convert(unet, **arguments)
    assert_same_bits(run(unet, kwargs), output)
    assert str(tfq.report(unet)) == report


@pytest.mark.parametrize(
    "config", [{"weights": "int8"}, "int8", TfqConfig], ids=["dict", "str", "class"]
)
def test_config_of_another_type(config):
    unet = prepared("plain")
    with refused(unet, TypeError, "config must be a TfqConfig", f"got {type(config).__name__}"):
        tfq.convert(unet, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_are_not_finite(value, dtype):
    unet = prepared("plain", dtype)
    name = "up_blocks.0.resnets.1.conv2.weight"
    with torch.no_grad():
        unet.get_parameter(name)[3, 1, 0, 2] = value
    with refused(unet, ValueError, f"parameter {name} has NaN or infinite values"):
        tfq.convert(unet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_weights_of_another_dtype(dtype):
    unet = prepared("plain", dtype)
    words = ("float32 or bfloat16", str(dtype), "conv_in.weight; load the model with dtype=")
    with refused(unet, TypeError, *words):
        tfq.convert(unet)


def test_device_without_kernels():
    unet = build("plain").to("meta")
    with pytest.raises(NotImplementedError, match="be on the CPU, got 'meta' for conv_in.weight"):
        tfq.convert(unet)
    assert not hasattr(unet, "_tfq_conversion") and unet.conv_in.weight.requires_grad


@pytest.mark.parametrize(
    "scheduler, error, words",
    [
        ("ddim", TypeError, ["scheduler must be a diffusers scheduler", "got str"]),
        (
            DDIMScheduler,
            TypeError,
            ["diffusers scheduler with set_timesteps(), got the class DDIMScheduler"],
        ),
        (ScoreSdeVeScheduler(), TypeError, ["step()", "got ScoreSdeVeScheduler"]),
        (ForeignStep(), ValueError, ["step(model_output, timestep, sample)", "sigma_hat"]),
    ],
)
def test_scheduler_that_does_not_fit(scheduler, error, words):
    unet = prepared("plain")
    with refused(unet, error, *words):
        tfq.convert(unet, scheduler=scheduler, num_inference_steps=2)


@pytest.mark.parametrize("name, steps", [("DDIMScheduler", 1001), ("DDPMScheduler", 1001)])
def test_more_steps_than_the_scheduler_has(name, steps):
    unet = prepared("plain")
    scheduler = {"DDIMScheduler": DDIMScheduler, "DDPMScheduler": DDPMScheduler}[name]()
    with refused(unet, ValueError, name, f"does not accept {steps} steps"):
        tfq.convert(unet, scheduler=scheduler, num_inference_steps=steps)


def test_scheduler_that_fails_in_its_steps():
    unet, scheduler = prepared("plain"), FlowMatchEulerDiscreteScheduler()
    scheduler.step = lambda model_output, timestep, sample: 1 / 0
    words = ("scheduler FlowMatchEulerDiscreteScheduler does not fit the model", "division by zero")
    with refused(unet, ValueError, *words):
        tfq.convert(unet, scheduler=scheduler, num_inference_steps=2)


@pytest.mark.parametrize(
    "steps, error",
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("50", TypeError), (True, TypeError)],
)
def test_number_of_steps(steps, error):
    unet = prepared("plain")
    with refused(unet, error, "num_inference_steps must be", str(steps)):
        tfq.convert(unet, scheduler=DDIMScheduler(), num_inference_steps=steps)


def test_steps_without_a_scheduler():
    unet = prepared("plain")
    with refused(unet, ValueError, "num_inference_steps=3 needs scheduler="):
        tfq.convert(unet, num_inference_steps=3)


def exhausted():
    generator = (inputs(unet) for unet in ())
    assert list(generator) == []
    return generator


@pytest.mark.parametrize("calibration", [[], (), iter(()), exhausted()])
def test_empty_calibration(calibration):
    unet = prepared("cross")
    with refused(unet, ValueError, "calibration is empty", "exhausted generator", "at least one"):
        tfq.convert(unet, calibration=calibration)


@pytest.mark.parametrize(
    "calibration, error, words",
    [
        ([{"sample": 1, "time": 3}], ValueError, ["'time'", "encoder_hidden_states"]),
        ([torch.zeros(1)], TypeError, ["must yield dicts", "got Tensor"]),
        ([{"timestep": 3}], ValueError, ["lacks", "'encoder_hidden_states', 'sample'"]),
        ({"sample": 1}, TypeError, ["an iterable of dicts", "got dict"]),
        ("data", TypeError, ["an iterable of dicts", "got str"]),
        (1.5, TypeError, ["an int", "got float"]),
        (True, ValueError, ["at least 1 trajectory", "True"]),
        (0, ValueError, ["at least 1 trajectory", "0"]),
        (2, ValueError, ["calibration=2 trajectories need scheduler="]),
        (lambda unet: None, ValueError, ["calibration made no call"]),
    ],
)
def test_calibration_it_cannot_use(calibration, error, words):
    unet = prepared("cross")
    with refused(unet, error, "calibration", *words):
        tfq.convert(unet, calibration=calibration)


def test_calibration_with_an_input_that_does_not_fit():
    unet = prepared("cross")
    good, bad = inputs(unet), inputs(unet)
    bad["sample"] = bad["sample"][:, :3]
    with refused(unet, ValueError, "sample must be (batch, 4, height, width)", "(2, 3, 16, 16)"):
        tfq.convert(unet, calibration=[good, bad])


@pytest.mark.parametrize("ranges", ["static", "timestep"])
def test_ranges_without_data(ranges):
    config = TfqConfig(activation_ranges=ranges)
    unet = prepared("plain")
    with refused(
        unet, ValueError, f"activation_ranges={ranges!r} needs scheduler= or calibration="
    ):
        tfq.convert(unet, config)
    unet = prepared("cross")
    for arguments in ({}, {"calibration": 1}):
        with refused(unet, ValueError, "needs encoder_hidden_states: pass calibration=, or"):
            tfq.convert(unet, config, **FEW_STEPS, **arguments)


def test_model_that_cannot_sample_on_its_own():
    unet = build("plain", in_channels=6, out_channels=3)
    with refused(unet, ValueError, "turns 6 channels into 3", "pass calibration="):
        tfq.convert(unet, **FEW_STEPS)
    assert tfq.convert(unet, calibration=[inputs(unet)]) is unet


def test_dropping_the_block_without_timesteps():
    unet = prepared("plain")
    with refused(unet, ValueError, "drop_tib=True needs scheduler= or calibration="):
        tfq.convert(unet, TfqConfig(drop_tib=True))


def test_prompts_without_a_pipeline():
    unet = prepared("cross")
    with refused(unet, ValueError, "prompts= needs a pipeline", "calibration="):
        tfq.convert(unet, prompts=["a cat"])


class Failure(Exception):
    pass


@pytest.mark.parametrize("name", ["attention", "scale_shift", "classes", "cross", "simple_cross"])
@pytest.mark.parametrize("calls", [0, 2])
def test_calibration_that_raises(name, calls):
    unet = prepared(name)

    def calibration(model):
        for _ in range(calls):
            model(**inputs(model))
        raise Failure("out of data")

    with refused(unet, Failure, "out of data"):
        tfq.convert(unet, calibration=calibration)
    assert tfq.convert(unet) is unet


def test_interrupted_calibration():
    unet = prepared("plain")

    def calibration(model):
        model(**inputs(model))
        raise KeyboardInterrupt

    with refused(unet, KeyboardInterrupt):
        tfq.convert(unet, calibration=calibration)


def fail_after_change(monkeypatch, number):
    """The conversion breaks right after its change `number`; returns the changes made so far."""
    made = []

    def counted(apply):
        def change(self, *arguments):
            apply(self, *arguments)
            made.append(arguments)
            if len(made) == number:
                raise Failure

        return change

    for method in ("set_child", "set_class", "set_attribute", "set_parameter", "add"):
        monkeypatch.setattr(Undo, method, counted(getattr(Undo, method)))
    return made


@pytest.mark.parametrize("name", ["attention", "scale_shift", "cross_text_time", "simple_cross"])
def test_failure_after_any_change(name, monkeypatch):
    unet = prepared(name, torch.bfloat16)
    with monkeypatch.context() as patch:
        total = len((fail_after_change(patch, None), tfq.convert(clone(unet)))[0])
    assert total > 50
    # First, last, and some of each stage in between.
    for number in sorted({1, 2, total, *range(total // 9, total, total // 9)}):
        with monkeypatch.context() as patch:
            fail_after_change(patch, number)
            with refused(unet, Failure):
                tfq.convert(unet)


@pytest.mark.parametrize(
    "module, name",
    [("conversion", "trace_shapes"), ("conversion", "plan_layers"),
     ("sensitivity", "estimate_errors"), ("conversion", "quantize_weight"),
     ("lowering", "FloatTIB"), ("checks", "CheckInputs"), ("calibrate", "run_calibration"),
     ("ranges", "install_ranges"), ("conversion", "install_features"),
     ("conversion", "mark_converted")],
)  # fmt: skip
def test_failure_in_any_stage(module, name, monkeypatch):
    def fail(*args, **kwargs):
        raise Failure

    unet = prepared("attention")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"tfq.{module}"), name, fail)
        with refused(unet, Failure):
            tfq.convert(unet, **FEW_STEPS)
    kwargs = inputs(unet)
    expected = run(tfq.convert(build("attention"), **FEW_STEPS), kwargs)
    assert_same_bits(run(tfq.convert(unet, **FEW_STEPS), kwargs), expected)

"""The conversion of a model, in place and all or nothing."""

import dataclasses
import inspect

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from tfq import calibrate, temporal
from tfq.config import TfqConfig
from tfq.lowering import Lowering, Undo, plan_layers
from tfq.shapes import trace_shapes

_DTYPES = (torch.float32, torch.bfloat16)
_DEFAULT_STEPS = 50
# Where no timesteps are given, the temporal error is measured at these.
_PROBE_TIMESTEPS = (0.0, 1.0, 10.0, 100.0, 500.0, 999.0)


@dataclasses.dataclass
class Conversion:
    """What :func:`tfq.report` needs to know of a conversion."""

    config: TfqConfig
    layers: list  # of (name, type, reason, macs, weight error)
    temporal_errors: list  # relative error of each (timestep, feature)


class CheckInputs:
    """Forward pre-hook of a converted UNet: inputs the kernels cannot take raise here, by name."""

    def __init__(self, model):
        self.in_channels, self.dtype = model.config.in_channels, model.dtype
        self.names = tuple(inspect.signature(type(model).forward).parameters)[1:]

    def __call__(self, module, args, kwargs):
        """Check ``sample``, and that no input requires grad."""
        inputs = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if "sample" not in inputs:
            return  # forward itself says what is missing
        sample = inputs["sample"]
        if not isinstance(sample, torch.Tensor):
            raise TypeError(f"UNet: sample must be a tensor, got {type(sample).__name__}")
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.requires_grad:
                raise ValueError(
                    f"UNet: {name} requires grad, but a converted model is inference-only; "
                    f"pass {name}.detach()"
                )
        if sample.dim() != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(
                f"UNet: sample must be (batch, {self.in_channels}, height, width), got "
                f"{tuple(sample.shape)}"
            )
        if sample.dtype is not self.dtype:
            raise TypeError(f"UNet: sample must be {self.dtype} as the model, got {sample.dtype}")
        if sample.device.type != "cpu":
            raise NotImplementedError(
                f"UNet: sample is on '{sample.device}'; this build of tfq has native kernels for 'cpu' only"
            )


def convert(
    model, config=None, *, scheduler=None, num_inference_steps=None, calibration=None, prompts=None
):
    """Convert a diffusion UNet to INT8, in place.

    Parameters
    ----------
    model : UNet2DModel or UNet2DConditionModel
        float32 or bfloat16, on the CPU.
    config : TfqConfig, optional
    scheduler : diffusers scheduler, optional
        Calibrates on the model's own trajectory: one sampling run with a copy of it gives every layer
        a static range per timestep. Without `scheduler` and `calibration` ranges are dynamic.
    num_inference_steps : int, optional
        Steps of that run, default 50.
    calibration : int, iterable of dict, or callable, optional
        Number of self-made trajectories; or keyword arguments of ``model.forward``, one dict a call;
        or a function that runs the model it is given.
    prompts : list of str, optional
        For pipelines.

    Returns
    -------
    UNet2DModel or UNet2DConditionModel
        `model` itself: same class, same signature, inference only.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        The message names the argument, what was required and what came. The model is as it was.

    Examples
    --------
    >>> import tfq
    >>> from diffusers import DDIMScheduler, UNet2DModel
    >>> unet = UNet2DModel(sample_size=8, block_out_channels=(32, 32),
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
    >>> unet = tfq.convert(unet, scheduler=DDIMScheduler(), num_inference_steps=2)
    """
    config = TfqConfig() if config is None else config
    _check_arguments(model, config, scheduler, num_inference_steps, calibration, prompts)
    ranges = _resolve_ranges(model, config, scheduler, calibration)
    undo = Undo()
    try:
        _convert(model, config, scheduler, num_inference_steps or _DEFAULT_STEPS, calibration, ranges, undo)
    except BaseException:
        undo.rollback()
        raise
    return model


def _check_arguments(model, config, scheduler, num_inference_steps, calibration, prompts):
    if not isinstance(config, TfqConfig):
        raise TypeError(f"convert: config must be a TfqConfig, got {type(config).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"convert: model must be a UNet2DModel or UNet2DConditionModel, got {type(model).__name__}"
        )
    if prompts is not None:
        raise NotImplementedError(
            "convert: prompts= is for pipelines, which this version does not convert; pass pipe.unet and "
            "calibration="
        )
    if isinstance(getattr(model, "time_embedding", None), temporal.TemporalEmbedding):
        raise ValueError("convert: model is converted already; load or build the float model again")
    if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()):
        raise ValueError(f"convert: {type(model).__name__} has no Conv2d or Linear: nothing to convert")
    if not isinstance(model, (UNet2DModel, UNet2DConditionModel)):
        raise TypeError(
            f"convert: model must be a UNet2DModel or UNet2DConditionModel, got {type(model).__name__}"
        )
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise NotImplementedError(
                f"convert: parameter {name} is on '{parameter.device}'; this build of tfq has native "
                f"kernels for 'cpu' only"
            )
        if parameter.dtype not in _DTYPES:
            raise TypeError(
                f"convert: parameters must be float32 or bfloat16, got {parameter.dtype} for {name}"
            )
        if not torch.isfinite(parameter).all():
            raise ValueError(f"convert: parameter {name} has NaN or infinite values")
    if num_inference_steps is not None and scheduler is None:
        raise ValueError(f"convert: num_inference_steps={num_inference_steps} needs scheduler=")
    if scheduler is not None:
        calibrate.check_scheduler(
            scheduler, _DEFAULT_STEPS if num_inference_steps is None else num_inference_steps
        )
    if isinstance(calibration, bool) or (isinstance(calibration, int) and calibration < 1):
        raise ValueError(f"convert: calibration must be at least 1 trajectory, got {calibration}")
    if isinstance(calibration, int) and scheduler is None:
        raise ValueError(f"convert: calibration={calibration} trajectories need scheduler=")
    iterable = hasattr(calibration, "__iter__") and not isinstance(calibration, (dict, str))
    if not (calibration is None or isinstance(calibration, int) or callable(calibration) or iterable):
        raise TypeError(
            f"convert: calibration must be an int, an iterable of dicts or a callable, got "
            f"{type(calibration).__name__}"
        )


def _resolve_ranges(model, config, scheduler, calibration):
    """"timestep", "static" or "dynamic"; raises if it needs calibration that is not there."""
    has_data = calibration is not None and not isinstance(calibration, int)
    calibrated = scheduler is not None or has_data
    ranges = config.activation_ranges
    if ranges == "auto":
        ranges = "timestep" if calibrated else "dynamic"
    if ranges != "dynamic":
        if not calibrated:
            raise ValueError(
                f"convert: activation_ranges={ranges!r} needs scheduler= or calibration= to calibrate with"
            )
        if isinstance(model, UNet2DConditionModel) and not has_data:
            raise ValueError(
                "convert: the model needs encoder_hidden_states: pass calibration= or "
                "convert(pipe, prompts=...)"
            )
        inputs, outputs = model.config.in_channels, model.config.out_channels
        if not has_data and outputs not in (inputs, 2 * inputs):
            raise ValueError(
                f"convert: the model turns {inputs} channels into {outputs} and cannot sample on its "
                f"own: pass calibration="
            )
    if config.drop_tib and ranges == "dynamic" and scheduler is None:
        raise ValueError("convert: drop_tib=True needs scheduler= or calibration= to know the timesteps")
    return ranges


@torch.no_grad()
def _convert(model, config, scheduler, steps, calibration, ranges, undo):
    _make_inference_only(model, undo)
    macs, skip_sources = trace_shapes(model)
    plans = plan_layers(model, config)
    if all(plan.reason for plan in plans):
        raise ValueError(
            f"convert: nothing to convert: all {len(plans)} layers stay float, e.g. {plans[0].name} "
            f"({plans[0].reason})"
        )
    float_weights = {plan.name: plan.module.weight.detach() for plan in plans if not plan.reason}
    float_features = _FloatFeatures(model)
    quantizers = Lowering(model, config, plans, skip_sources, undo).run()
    model.eval()  # the modules that are new
    hook = model.register_forward_pre_hook(CheckInputs(model), with_kwargs=True)
    undo.add(hook.remove)

    embedding = model.time_embedding
    folded = {f"{name}.time_emb_proj" for name, _ in embedding.slots}
    for plan in plans:
        if plan.name in folded:
            plan.reason = "temporal block: folded"
    if ranges != "dynamic":
        recorder = calibrate.RangeRecorder()
        for quantizer in quantizers:
            quantizer.recorder = recorder
        handle = embedding.register_forward_pre_hook(recorder.see)
        try:
            calibrate.run_calibration(model, calibration, scheduler, steps, config)
        finally:
            handle.remove()
            for quantizer in quantizers:
                quantizer.recorder = None
        calibrate.install_ranges(embedding, quantizers, recorder, ranges)
    elif scheduler is not None:
        timesteps = calibrate.check_scheduler(scheduler, steps).timesteps.float().unique()
        embedding.set_rows(timesteps, torch.cat([embedding.compute_rows(t[None]) for t in timesteps]))

    probes = embedding.values.tolist() or float_features.probes()
    errors = [e for t in probes for e in float_features.errors(embedding, torch.tensor([t]))]
    modules = dict(model.named_modules())
    layers = [
        (plan.name, type(plan.module).__name__, plan.reason, macs.get(plan.name, 0),
         None if plan.reason else _relative_error(modules[plan.name].weight, float_weights[plan.name]))
        for plan in plans
    ]  # fmt: skip
    undo.set_attribute(model, "_tfq_conversion", Conversion(config, layers, errors))
    # From here nothing can fail: the float block shrinks only now, because halving cannot be undone.
    if len(embedding.values):
        embedding.finish(config.drop_tib)


def _make_inference_only(model, undo):
    for module in model.modules():
        if module.training:
            undo.set_attribute(module, "training", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            undo.add(lambda p=parameter: p.requires_grad_(True))
            parameter.requires_grad_(False)


def _relative_error(actual, expected):
    """``|actual - expected| / |expected|``."""
    norm = expected.float().norm().item()
    return (actual - expected.float()).norm().item() / norm if norm else 0.0


class _FloatFeatures:
    """The temporal path of the float model, run module by module as the float model runs it."""

    def __init__(self, model):
        self.time_proj, self.embedding = model.time_proj, model.time_embedding
        self.embed_act = getattr(model, "time_embed_act", None)
        modules = dict(model.named_modules())
        blocks = temporal.temporal_blocks(model)["blocks"]
        self.blocks = {
            block["block"]: (modules[block["block"]], modules[block["name"]])
            for block in blocks
            if hasattr(modules[block["block"]], "time_emb_proj")
        }

    def probes(self):
        """Timesteps at which to measure the error where no table says."""
        known = getattr(self.time_proj, "num_embeddings", None)
        return [t for t in _PROBE_TIMESTEPS if known is None or t < known]

    def errors(self, embedding, timestep):
        """Relative error of each folded feature of a converted model's row for one timestep."""
        if not embedding.slots:
            return []
        row = embedding(temporal.encode_timesteps(timestep))
        dtype = next(self.embedding.parameters()).dtype
        learned = isinstance(self.time_proj, nn.Embedding)
        sinusoid = self.time_proj(timestep.long() if learned else timestep)
        embedded = self.embedding(sinusoid.to(dtype))
        if self.embed_act is not None:
            embedded = self.embed_act(embedded)
        if not torch.isfinite(embedded).all():
            return []  # a Fourier projection of timestep 0 takes its logarithm
        errors = []
        for name, slot in embedding.slots:
            block, projection = self.blocks[name]
            active = embedded if block.skip_time_act else block.nonlinearity(embedded)
            expected = block.fold_feature(projection(active)).float()
            errors.append(_relative_error(row[:, slot : slot + expected.shape[1]], expected))
        return errors

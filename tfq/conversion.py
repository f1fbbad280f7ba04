"""The conversion of a model, in place and all or nothing."""

import torch

from tfq import calibrate, checks, pipelines, ranges, sensitivity
from tfq.adaln_lowering import lower
from tfq.adapters import base_modules
from tfq.config import TfqConfig
from tfq.diffusers_quantizer import mark_converted
from tfq.distributed import failing_together
from tfq.lowering import Undo
from tfq.models import images_of
from tfq.nonfinite import carry_nonfinite
from tfq.output_correction import correct_output, fit_correction
from tfq.plan import plan_layers
from tfq.reconstruct import reconstruct_blocks
from tfq.saving import Conversion
from tfq.shapes import trace_shapes
from tfq.temporal_modes import (
    TABLE_MODES,
    float_features_of,
    install_features,
    relative_error,
)
from tfq.weights import quantize_weight

# Images of the calibration that the reconstruction runs on, spread over its calls.
_RECONSTRUCTION_IMAGES = 80
_TEMPORAL_REASONS = {
    "fold": "folded",
    "cache": "cached in 8 bits",
    "tib": "quantized, ranges by timestep",
    "select": "quantized or cached, by timestep and block",
}


@torch.inference_mode(False)
@torch.no_grad()
def convert(
    model,
    config=None,
    *,
    scheduler=None,
    num_inference_steps=None,
    calibration=None,
    prompts=None,
    progress=None,
    checkpoint=None,
):
    """Convert a diffusion model to INT8, in place.

    In the processes of an initialized ``torch.distributed`` group, each with the same model and
    arguments, the trajectories of ``calibration=int`` and the calls of an iterable are dealt out; every
    process gets the model that one process alone would make.

    Parameters
    ----------
    model : UNet2DModel, UNet2DConditionModel, ControlNetModel, DiTTransformer2DModel, \
            PixArtTransformer2DModel or DiffusionPipeline
        float32 or bfloat16, on the CPU. Of a pipeline the UNet or transformer is converted, and
        calibrated through the pipeline itself.
    config : TfqConfig, optional
    scheduler : diffusers scheduler, optional
        Calibrates on the model's own trajectory: one sampling run with a copy of it gives every layer
        a static range per timestep. Without `scheduler` and `calibration` ranges are dynamic.
        A pipeline's own unless one is given.
    num_inference_steps : int, optional
        Steps of that run, default 50; of a pipeline what it does when it is not told.
    calibration : int, iterable of dict, or callable, optional
        Number of self-made trajectories; or keyword arguments of ``model.forward``, one dict a call;
        or a function that runs the model it is given.
    prompts : list of str, optional
        For a pipeline with text: one run of it for each, with the noise of ``config.seed`` and the
        numbers that follow. A pipeline without text calibrates on ``config.calibration_samples`` images
        if `num_inference_steps` or `scheduler` is given.
    progress : callable, optional
        ``progress(done, total, label)`` during the steps that take long; total is None where it is not
        known.
    checkpoint : path, optional
        Folder for the finished layers of ``reconstruction="block"``: an interrupted conversion that is
        called again with it continues there, with the same result.

    Returns
    -------
    same as `model`
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
    checks.check_config(config, checkpoint)
    if pipelines.is_pipeline(model):
        calls = pipelines.calls_of(
            model, config, scheduler, num_inference_steps, calibration, prompts, progress
        )
        convert(pipelines.unet_of(model), config, progress=progress, checkpoint=checkpoint, **calls)
        return model
    checks.check_arguments(model, scheduler, num_inference_steps, calibration, prompts)
    kind = checks.resolve_ranges(model, config, scheduler, calibration)
    undo = Undo()
    steps = num_inference_steps or calibrate.DEFAULT_STEPS
    source = _Calibration(calibration, scheduler, steps, config, progress)
    try:
        _convert(model, config, source, kind, checkpoint, undo)
    except BaseException:
        undo.rollback()
        raise
    return model


class _Calibration:
    """The calibration calls, made at most once on the float model."""

    def __init__(self, calibration, scheduler, steps, config, progress):
        self.calibration = calibration
        self.scheduler = scheduler
        self.steps = steps
        self.config = config
        self.progress = progress
        self.calls = self.outputs = None

    def can_run(self, model):
        """Whether there are calls to record: given ones, or the model's own sampling."""
        if self.calibration is not None and not isinstance(self.calibration, int):
            return True
        return self.scheduler is not None and not checks.why_it_cannot_sample(model)

    def record(self, model):
        """Arguments of each call of the float model (kept: a generator can be run through once)."""
        if self.calls is None:
            hook = model.register_forward_pre_hook(checks.CheckInputs(model), with_kwargs=True)
            try:
                self.calls, self.outputs = calibrate.record_calls(
                    model, self.calibration, self.scheduler, self.steps, self.config, self.progress
                )
            finally:
                hook.remove()
            if not self.calls:
                raise ValueError("convert: calibration made no call of the UNet")
        return self.calls

    def run(self, model, begin):
        """Run the lowered model: through the recorded calls, or on its own."""
        calibration = self.calibration if self.calls is None else self.calls
        calibrate.run_calibration(
            model, calibration, self.scheduler, self.steps, self.config, self.progress, begin
        )

    def timesteps(self):
        """Timesteps of the scheduler, ascending float32."""
        scheduler = calibrate.check_scheduler(self.scheduler, self.steps)
        return scheduler.timesteps.float().unique()


def _convert(model, config, source, kind, checkpoint, undo):
    _make_inference_only(model, undo)
    macs, skip_sources = trace_shapes(model)
    plans = plan_layers(model, config, macs, skip_sources)
    if not any(plan.converted for plan in plans):
        raise ValueError(
            f"convert: nothing to convert: all {len(plans)} layers stay float, e.g. {plans[0].name} "
            f"({plans[0].reason})"
        )
    shifts = {}
    if config.precision == "auto" and source.can_run(model):
        calls = source.record(model)
        estimates = sensitivity.estimate_errors(model, plans, calls, config, source.progress)
        sensitivity.refine_plans(plans, estimates, config)
        shifts = sensitivity.bias_shifts(plans, estimates, config)
    weight_of = _weight_source(model, plans, shifts, config, source, checkpoint)
    float_features, float_modules = float_features_of(model), base_modules(model)
    lowered = lower(model, config, plans, undo)
    _load_weights(lowered.layers, plans, float_modules, weight_of)
    model.eval()  # the modules that are new
    hook = model.register_forward_pre_hook(checks.CheckInputs(model), with_kwargs=True)
    undo.add(hook.remove)
    undo.add(carry_nonfinite(model).remove)

    embedding = model.time_embedding
    _mark_temporal_layers(plans, embedding, config)
    _install_rows(model, lowered, config, source, kind)
    errors = install_features(embedding, float_features, config, source.progress)
    for plan in plans:
        if plan.converted:
            plan.ranges = lowered.layers[plan.name].input.ranges
    corrected = _correct_output(model, source, undo)
    timesteps = embedding.values.tolist()
    conversion = Conversion(config, plans, errors, timesteps, model.dtype, corrected)
    mark_converted(model, conversion, undo)
    # From here nothing can fail: the float block shrinks only now, because halving cannot be undone.
    if len(embedding.values):
        embedding.finish(config.drop_tib)


def _weight_source(model, plans, shifts, config, source, checkpoint):
    """Function of a LayerPlan -> (parts of its weight as QuantizedWeight, bias or None).

    Weights rounded to nearest take back their mean error where the layer has a bias to do it with.
    """
    converted = [plan for plan in plans if plan.converted]
    if config.reconstruction == "block":
        return _reconstruct(model, converted, config, source, checkpoint)
    modules = base_modules(model)

    def nearest(plan):
        # Rounded when it is packed, layer by layer: the integers of all layers never exist twice.
        layer = modules[plan.name]
        weight, bias = layer.weight.detach(), None
        if layer.bias is not None and plan.name in shifts:
            bias = layer.bias.detach().float() - shifts[plan.name].to(layer.bias.device)
        parts = weight.split(plan.sources, dim=1) if plan.sources else (weight,)
        return [quantize_weight(part, plan.weight_bits) for part in parts], bias

    return nearest


def _load_weights(layers, plans, modules, weight_of):
    for plan in plans:
        if not plan.converted:
            continue
        (parts, bias), layer = weight_of(plan), modules[plan.name]
        plan.adds_bias = layer.bias is None and bias is not None
        rounded = torch.cat([part.dequantize() for part in parts], dim=1)
        plan.weight_error = relative_error(rounded, layer.weight)
        layers[plan.name].load_weight(*parts, bias=bias)


def _reconstruct(model, converted, config, source, checkpoint):
    calls = calibrate.spread_images(source.record(model), _RECONSTRUCTION_IMAGES)
    result = reconstruct_blocks(
        model,
        {plan.name: plan.weight_bits for plan in converted},
        calls,
        activations={plan.name: plan.activations for plan in converted},
        seed=config.seed,
        sources={plan.name: plan.sources for plan in converted if plan.sources},
        progress=source.progress,
        checkpoint=checkpoint,
    )

    def reconstructed(plan):
        weight = result.weights.pop(plan.name)
        return weight if isinstance(weight, list) else [weight], result.biases[plan.name]

    return reconstructed


def _mark_temporal_layers(plans, embedding, config):
    folded = set(embedding.places) - {"time_embedding"}
    if folded and config.temporal in ("tib", "select"):
        folded.add("time_embedding.linear_2")
    for plan in plans:
        if folded & {plan.name, plan.name.rpartition(".")[0]}:
            plan.reason = f"temporal block: {_TEMPORAL_REASONS[config.temporal]}"


def _install_rows(model, lowered, config, source, kind):
    """Build the table of rows: from a run of the model, or for the scheduler's timesteps alone."""
    embedding = model.time_embedding
    if (kind == "dynamic" or not lowered.quantizers) and source.scheduler is not None:
        timesteps = source.timesteps()
        rows = torch.cat([embedding.compute_rows(t[None]) for t in timesteps])
        embedding.set_rows(timesteps, rows)
        return
    if kind == "dynamic" and not (config.drop_tib or config.temporal in TABLE_MODES):
        return
    recorder = ranges.RangeRecorder(config.range_estimator)
    quantizers = [] if kind == "dynamic" else lowered.quantizers
    for quantizer in quantizers:
        quantizer.recorder = recorder
    handle = embedding.register_forward_pre_hook(recorder.see)
    try:
        with failing_together():
            source.run(model, recorder.begin)
    finally:
        handle.remove()
        for quantizer in quantizers:
            quantizer.recorder = None
    recorder.share(quantizers)
    ranges.install_ranges(embedding, quantizers, recorder, kind)


def _correct_output(model, source, undo):
    """The timesteps it is for: none where no float model was called, or no image comes out."""
    if not source.calls or source.outputs[0].shape[2:] != images_of(source.calls[0]).shape[2:]:
        return []
    correction = fit_correction(model, source.calls, source.outputs, source.progress)
    undo.set_child(model, "output_correction", correction)
    undo.add(correct_output(model).remove)
    return correction.values.tolist()


def _make_inference_only(model, undo):
    for module in model.modules():
        if module.training:
            undo.set_attribute(module, "training", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            undo.add(lambda p=parameter: p.requires_grad_(True))
            parameter.requires_grad_(False)

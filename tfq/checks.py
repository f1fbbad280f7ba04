"""What :func:`tfq.convert` and a converted model accept, and the errors for everything else."""

import math

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from tfq import adapters, calibrate, models, temporal
from tfq.config import TfqConfig
from tfq.ops._checks import HAS_CUDA, KERNEL_DEVICES
from tfq.temporal_modes import TABLE_MODES

_TIME = ("time_proj", "time_embedding")
_TEXT = "encoder_hidden_states"
_DTYPES = (torch.float32, torch.bfloat16)
# What to do about a model that cannot sample by itself.
_GIVE_CALLS = ": pass calibration=, or for the UNet of a pipeline convert(pipe, prompts=...)"


class CheckInputs:
    """Forward pre-hook of a converted model: inputs the kernels cannot take raise here, by name."""

    def __init__(self, model):
        self.in_channels, self.dtype = model.config.in_channels, model.dtype
        self.names, _ = models.arguments_of(model)
        self.images = models.image_argument(model)
        self.model = type(model).__name__
        self.multiple = _size_multiple(model)
        self.needs_text = _needs_text(model)

    def __call__(self, module, args, kwargs):
        """Check the noisy images, that no input requires grad, and what else a layer would report late."""
        if torch.compiler.is_compiling():
            return  # a hook is a graph of its own, compiled again for every shape it looks at
        inputs = models.call_of(self.names, args, kwargs)
        if self.images not in inputs:
            return  # forward itself says what is missing
        sample = inputs[self.images]
        if not isinstance(sample, torch.Tensor):
            raise TypeError(
                f"{self.model}: {self.images} must be a tensor, got {type(sample).__name__}"
            )
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.requires_grad:
                raise ValueError(
                    f"{self.model}: {name} requires grad, but a converted model is inference-only; "
                    f"pass {name}.detach()"
                )
        if sample.dim() != 4 or sample.shape[1] != self.in_channels or 0 in sample.shape:
            raise ValueError(
                f"{self.model}: {self.images} must be (batch, {self.in_channels}, height, width), each "
                f"at least 1, got {tuple(sample.shape)}"
            )
        if any(size % self.multiple for size in sample.shape[2:]):
            raise ValueError(
                f"{self.model}: height and width of {self.images} must be multiples of {self.multiple}, 2 "
                f"for each downsampling, got {tuple(sample.shape[2:])}"
            )
        if self.needs_text and inputs.get(_TEXT, sample) is None:
            raise TypeError(f"{self.model}: encoder_hidden_states must be a tensor, got None")
        timestep = inputs.get("timestep")
        if isinstance(timestep, float) and not math.isfinite(timestep):
            raise ValueError(f"{self.model}: timestep must be finite, got {timestep}")
        if sample.dtype is not self.dtype:
            raise TypeError(
                f"{self.model}: {self.images} must be {self.dtype} as the model, got {sample.dtype}"
            )
        if not (sample.is_cpu or (HAS_CUDA and sample.is_cuda)):
            raise NotImplementedError(
                f"{self.model}: {self.images} is on '{sample.device}'; this build of tfq has native "
                f"kernels for {KERNEL_DEVICES} only"
            )


def _size_multiple(model):
    """What height and width are multiples of; the other models make up for an odd size on the way up."""
    if not isinstance(model, UNet2DModel):
        return 1
    return 2 ** sum(getattr(block, "downsamplers", None) is not None for block in model.down_blocks)


def _needs_text(model):
    """Whether attentions cannot take the images in the place of a text that is None, nor another input."""
    return model.config.get("encoder_hid_dim_type") is None and any(
        isinstance(module, Attention)
        and module.is_cross_attention
        and module.cross_attention_dim != module.query_dim
        for module in model.modules()
    )


def check_config(config, checkpoint):
    """Raise if `config` is no TfqConfig, or has nothing that `checkpoint` could continue."""
    if not isinstance(config, TfqConfig):
        raise TypeError(f"convert: config must be a TfqConfig, got {type(config).__name__}")
    if checkpoint is not None and config.reconstruction != "block":
        raise ValueError(
            f"convert: checkpoint= needs reconstruction='block', whose layers it keeps, got "
            f"reconstruction={config.reconstruction!r}"
        )


def check_arguments(model, scheduler, num_inference_steps, calibration, prompts):
    """Raise if :func:`tfq.convert` cannot do what it is asked to; nothing is changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"convert: model must be one of {models.CLASS_NAMES}; got {models.described(model)}"
        )
    if prompts is not None:
        raise ValueError(
            "convert: prompts= needs a pipeline, which knows how text is encoded: pass the pipeline "
            "itself, or calibration="
        )
    if isinstance(getattr(model, "time_embedding", None), temporal.TemporalEmbedding):
        raise ValueError("convert: model is converted already; load or build the float model again")
    if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()):
        raise ValueError(
            f"convert: {type(model).__name__} has no Conv2d or Linear: nothing to convert"
        )
    if not isinstance(model, models.CLASSES):
        raise TypeError(
            f"convert: model must be one of {models.CLASS_NAMES}; got {type(model).__name__}"
        )
    times = (*_TIME, *models.temporal_modules(model))
    for name, module in model.named_modules():
        if name.startswith(times) and (
            adapters.is_wrapped(module) or not adapters.is_untouched(module)
        ):
            raise ValueError(
                f"convert: {name} has a hook or an adapter, but is replaced by a table of rows; remove "
                f"the hook, or fuse the adapter (pipe.fuse_lora()), before the conversion"
            )
        if name and "forward" in module.__dict__:
            raise ValueError(
                f"convert: the forward of {name} was replaced (offloading, a cache of features), and would "
                f"run as before; take that back first, as with pipe.remove_all_hooks(), and add it again "
                f"after the conversion"
            )
        if isinstance(module, Attention) and module.fused_projections:
            raise ValueError(
                f"convert: the projections of {name} are fused (fuse_qkv_projections); load the model "
                f"again and convert it without: queries, keys and values share one quantized input as "
                f"they are"
            )
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise NotImplementedError(
                f"convert: parameters must be on the CPU, got '{parameter.device}' for {name}; convert the "
                f"model there, with its weights loaded, and move it afterwards"
            )
        if parameter.dtype not in _DTYPES:
            raise TypeError(
                f"convert: parameters must be float32 or bfloat16, got {parameter.dtype} for {name}; load "
                f"the model with dtype=torch.bfloat16, or cast it: model.float()"
            )
        if not torch.isfinite(parameter).all():
            raise ValueError(f"convert: parameter {name} has NaN or infinite values")
    if num_inference_steps is not None and scheduler is None:
        raise ValueError(f"convert: num_inference_steps={num_inference_steps} needs scheduler=")
    if scheduler is not None:
        calibrate.check_scheduler(
            scheduler,
            calibrate.DEFAULT_STEPS if num_inference_steps is None else num_inference_steps,
        )
    if isinstance(calibration, bool) or (isinstance(calibration, int) and calibration < 1):
        raise ValueError(f"convert: calibration must be at least 1 trajectory, got {calibration}")
    if isinstance(calibration, int) and scheduler is None:
        raise ValueError(f"convert: calibration={calibration} trajectories need scheduler=")
    iterable = hasattr(calibration, "__iter__") and not isinstance(calibration, (dict, str))
    if not (
        calibration is None or isinstance(calibration, int) or callable(calibration) or iterable
    ):
        raise TypeError(
            f"convert: calibration must be an int, an iterable of dicts or a callable, got "
            f"{type(calibration).__name__}"
        )


def resolve_ranges(model, config, scheduler, calibration):
    """One of "timestep", "static" and "dynamic"; raises if it needs calibration that is not there."""
    if isinstance(model, models.TRANSFORMERS) and config.temporal not in ("fold", "cache"):
        raise ValueError(
            f"convert: temporal={config.temporal!r} is for UNets and ControlNets; of a "
            f"{type(model).__name__} the features are a table: temporal='fold' or 'cache'"
        )
    has_data = calibration is not None and not isinstance(calibration, int)
    calibrated = scheduler is not None or has_data
    ranges = config.activation_ranges
    if ranges == "auto" and config.activations == "float":
        ranges = "dynamic"
    if ranges == "auto":
        ranges = "timestep" if calibrated else "dynamic"
    if ranges != "dynamic":
        if not calibrated:
            raise ValueError(
                f"convert: activation_ranges={ranges!r} needs scheduler= or calibration= to calibrate with"
            )
        if not has_data and (reason := why_it_cannot_sample(model)):
            raise ValueError(f"convert: {reason}{_GIVE_CALLS}")
    if scheduler is None and ranges == "dynamic" and not has_data:
        for name, needed in (
            ("drop_tib", config.drop_tib),
            ("temporal", config.temporal in TABLE_MODES),
        ):
            if needed:
                raise ValueError(
                    f"convert: {name}={getattr(config, name)!r} needs scheduler= or calibration= to know "
                    f"the timesteps"
                )
    if config.drop_tib and "time_embedding.cond_proj" in temporal.conditions(model):
        raise ValueError(
            "convert: drop_tib=True drops the float time embedding, but time_embedding.cond_proj joins "
            "it at every call; leave drop_tib out"
        )
    if config.reconstruction == "block" and not has_data:
        if not calibrated:
            raise ValueError("convert: reconstruction='block' needs scheduler= or calibration=")
        if reason := why_it_cannot_sample(model):
            raise ValueError(
                f"convert: reconstruction='block' runs the model, but {reason}{_GIVE_CALLS}"
            )
    return ranges


def why_it_cannot_sample(model):
    """Why a model alone does not make a calibration run; None if it can."""
    if conditions := models.conditions_of(model):
        return f"the model needs {' and '.join(conditions)}"
    inputs, outputs = model.config.in_channels, models.out_channels(model)
    if outputs not in (inputs, 2 * inputs):
        return f"the model turns {inputs} channels into {outputs} and cannot sample on its own"
    return None

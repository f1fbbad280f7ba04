"""The calls that calibrate a model: its own trajectories, or what the user gives.

One trajectory of a sampler visits every timestep, so a calibration costs one UNet call a step, O(T) in
all, where restarting from noise for each timestep would cost O(T^2). Ranges are recorded on the model
as it will run, already lowered, with dynamic ranges.
"""

import copy
import inspect

import torch

from tfq.distributed import failing_together, gather, is_mine
from tfq.models import (
    arguments_of,
    call_of,
    described,
    image_argument,
    images_of,
    output_of,
)
from tfq.shapes import example_inputs

DEFAULT_STEPS = 50
_STEP_ARGUMENTS = ("model_output", "timestep", "sample")


def check_scheduler(scheduler, num_inference_steps):
    """A private copy of `scheduler` with its timesteps set; raises if it does not fit."""
    for method in ("set_timesteps", "step"):
        if isinstance(scheduler, type) or not callable(getattr(scheduler, method, None)):
            raise TypeError(
                f"convert: scheduler must be a diffusers scheduler with {method}(), got "
                f"{described(scheduler)}"
            )
    needed = [
        p.name
        for p in inspect.signature(scheduler.step).parameters.values()
        if p.default is p.empty
    ]
    if needed != list(_STEP_ARGUMENTS):
        raise ValueError(
            f"convert: scheduler must have step({', '.join(_STEP_ARGUMENTS)}), but "
            f"{type(scheduler).__name__}.step needs {', '.join(needed)}"
        )
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise TypeError(
            f"convert: num_inference_steps must be an int, got {type(num_inference_steps).__name__} "
            f"{num_inference_steps!r}"
        )
    if num_inference_steps < 1:
        raise ValueError(
            f"convert: num_inference_steps must be at least 1, got {num_inference_steps}"
        )
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_inference_steps)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"convert: {type(scheduler).__name__} does not accept {num_inference_steps} steps: {error}"
        ) from error
    return scheduler


def _reads_variance(scheduler):
    """Whether the second half of the channels is for the scheduler (a learned variance)."""
    return getattr(scheduler.config, "variance_type", None) in ("learned", "learned_range")


class Trajectory:
    """One sampling run of a model, from noise of its own, with a copy of the scheduler.

    Parameters
    ----------
    unet : a model of :data:`tfq.models.CLASSES`
    scheduler : diffusers scheduler
    num_inference_steps : int
    images : int
        Batch size.
    seed : int
        Of the noise, the class labels and what the scheduler adds.

    Attributes
    ----------
    timesteps : Tensor
        In the order in which :meth:`step` takes them.
    sample : Tensor
        float32, what the next step starts from.
    """

    def __init__(self, unet, scheduler, num_inference_steps, images, seed):
        self._unet, self._scheduler = unet, check_scheduler(scheduler, num_inference_steps)
        generator = torch.Generator().manual_seed(seed)
        self._inputs = example_inputs(unet, images, generator)
        self._images = image_argument(unet)
        noise = self._inputs.pop(self._images).float()
        self.sample = noise * getattr(self._scheduler, "init_noise_sigma", 1.0)
        self.timesteps = self._scheduler.timesteps
        step_arguments = inspect.signature(self._scheduler.step).parameters
        self._extra = {"generator": generator} if "generator" in step_arguments else {}

    def predict(self, timestep):
        """Output of the UNet for the present sample, float32."""
        scaled = self.sample
        if hasattr(self._scheduler, "scale_model_input"):
            scaled = self._scheduler.scale_model_input(scaled, timestep)
        sample = scaled.to(self._unet.dtype)
        timesteps = timestep.expand(len(sample))
        call = {**self._inputs, self._images: sample, "timestep": timesteps}
        return self._unet(**call).sample.float()

    def step(self, timestep, output):
        """Advance the sample by the model's `output` at `timestep`."""
        channels = self.sample.shape[1]
        if output.shape[1] == 2 * channels and not _reads_variance(self._scheduler):
            output = output.chunk(2, dim=1)[0]
        try:
            result = self._scheduler.step(output, timestep, self.sample, **self._extra)
        except Exception as error:
            raise ValueError(
                f"convert: scheduler {type(self._scheduler).__name__} does not fit the model: {error}"
            ) from error
        self.sample = result.prev_sample


def run_trajectory(unet, scheduler, num_inference_steps, images, seed, progress=None):
    """Sample `images` images once with a copy of the scheduler; every UNet call is a calibration call."""
    trajectory = Trajectory(unet, scheduler, num_inference_steps, images, seed)
    for done, timestep in enumerate(trajectory.timesteps, 1):
        trajectory.step(timestep, trajectory.predict(timestep))
        if progress is not None:
            progress(done, len(trajectory.timesteps), "calibration")


def run_calibration(
    unet,
    calibration,
    scheduler,
    num_inference_steps,
    config,
    progress=None,
    begin=lambda unit: None,
):
    """Drive the lowered model through its calibration calls: those that are this process's to make.

    ``begin(unit)`` is called before each trajectory, or before each call of an iterable; a function is
    one unit, which every process does.

    Raises
    ------
    ValueError
        If timestep, images, text or output of a call have NaN or infinite values: no range can be learned
        from it.
    """
    with unet.register_forward_hook(_check_finite, with_kwargs=True):
        _run_calibration(unet, calibration, scheduler, num_inference_steps, config, progress, begin)


def _check_finite(unet, args, kwargs, output):
    call = call_of(arguments_of(unet)[0], args, kwargs)
    timesteps = torch.as_tensor(call["timestep"])
    finite = timesteps.isfinite()
    if not finite.all():
        raise ValueError(
            f"convert: calibration timesteps must be finite, got {timesteps[~finite][0].item()}"
        )
    output = output_of(output if isinstance(output, tuple) else output.to_tuple())
    # Integers may hide what is wrong with the inputs; masks may have infinite values.
    values = {
        "images": images_of(call),
        "text": call.get("encoder_hidden_states"),
        "output": output,
    }
    for name, value in values.items():
        if value is not None and not value.isfinite().all():
            raise ValueError(
                f"convert: calibration must be finite, but has NaN or infinite values in the {name} at "
                f"timestep {call['timestep']}"
            )


def _run_calibration(unet, calibration, scheduler, num_inference_steps, config, progress, begin):
    if callable(calibration):
        begin(0)
        calibration(unet)
        return
    if isinstance(calibration, int) or calibration is None:
        for trajectory in filter(is_mine, range(1 if calibration is None else calibration)):
            begin(trajectory)
            run_trajectory(
                unet,
                scheduler,
                num_inference_steps,
                config.calibration_samples,
                config.seed + trajectory,
                progress,
            )
        return
    accepted, required = (set(names) for names in arguments_of(unet))
    calls, total = 0, len(calibration) if hasattr(calibration, "__len__") else None
    for kwargs in calibration:
        if not isinstance(kwargs, dict):
            raise TypeError(
                f"convert: calibration must yield dicts of the UNet's forward arguments, got "
                f"{type(kwargs).__name__}"
            )
        unknown = sorted(set(kwargs) - accepted)
        if unknown:
            raise ValueError(
                f"convert: calibration yields the argument {', '.join(map(repr, unknown))}, which "
                f"{type(unet).__name__}.forward does not have (it has {', '.join(sorted(accepted))})"
            )
        missing = sorted(required - set(kwargs))
        if missing:
            raise ValueError(
                f"convert: calibration yields a dict that lacks {', '.join(map(repr, missing))}, which "
                f"{type(unet).__name__}.forward needs"
            )
        if is_mine(calls):
            begin(calls)
            unet(**kwargs)
        calls += 1
        if progress is not None:
            progress(calls, total, "calibration")
    if calls == 0:
        raise ValueError(
            "convert: calibration is empty (or an exhausted generator); it must yield at least one dict "
            "of forward arguments"
        )


def record_calls(unet, calibration, scheduler, num_inference_steps, config, progress=None):
    """Every call of a calibration run of the float model.

    Returns
    -------
    calls : list of dict
        Keyword arguments of ``unet.forward``, tensors on the device they came on.
    outputs : list of Tensor
        What each returned, as :func:`tfq.models.output_of` has it.
    """
    names, _ = arguments_of(unet)
    units, calls = {}, []

    def begin(unit):
        nonlocal calls
        calls = units[unit] = []

    def record(module, args, kwargs):
        call = call_of(names, args, kwargs)
        call = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        calls.append([call, None])

    def record_output(module, args, output):
        output = output if isinstance(output, tuple) else output.to_tuple()
        calls[-1][1] = output_of(output).clone()

    handles = [
        unet.register_forward_pre_hook(record, with_kwargs=True),
        unet.register_forward_hook(record_output),
    ]
    try:
        with failing_together():
            run_calibration(
                unet, calibration, scheduler, num_inference_steps, config, progress, begin
            )
    finally:
        for handle in handles:
            handle.remove()
    recorded = [call for unit in gather(units).values() for call in unit]
    return [call for call, _ in recorded], [output for _, output in recorded]


def spread_images(calls, count):
    """About `count` images of recorded calls: some of each call, or one each of evenly spaced ones.

    The first and the last call are among them: what is left of the noise at the end of a trajectory is
    the hardest to tell from rounding.

    Parameters
    ----------
    calls : list of dict
        From :func:`record_calls`.
    count : int

    Returns
    -------
    list of dict
        Calls with fewer images. Which images of a batch is rotated from call to call.
    """
    each = max(1, count // len(calls))
    chosen = torch.linspace(0, len(calls) - 1, min(len(calls), count)).round().int().tolist()
    picked = []
    for i, index in enumerate(chosen):
        call = calls[index]
        batch = images_of(call).shape[0]
        images = torch.arange(i, i + min(each, batch)) % batch
        picked.append({k: _images(v, images, batch) for k, v in call.items()})
    return picked


def _images(value, images, batch):
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == batch:
        return value[images.to(value.device)]
    if isinstance(value, dict):
        return {k: _images(v, images, batch) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_images(v, images, batch) for v in value)
    return value

"""A converted model against its float original: the same noise, step by step, in turns."""

import dataclasses
import math
import time

import torch

from tfq import models
from tfq.calibrate import Trajectory
from tfq.environment import described, info
from tfq.reporting import weight_bytes
from tfq.tables import counted
from tfq.timing import Timing, paired_ratio

PEAK = 2.0
"""Range of the values of an image: -1 to 1."""


def psnr(images, reference, peak=PEAK):
    """Peak signal-to-noise ratio in dB, the error averaged over everything; infinite if identical.

    Parameters
    ----------
    images, reference : Tensor
        Of one shape, any dtype.
    peak : float
        Range of the values.
    """
    error = (images.double() - reference.double()).square().mean().item()
    return 10.0 * math.log10(peak**2 / error) if error else math.inf


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Result of :func:`compare`.

    Attributes
    ----------
    timesteps : list of float
        In sampling order.
    psnr_per_step : list of float
        Of the sample after each step, dB, peak 2.
    float_images, images : Tensor
        What both models sampled, float32 ``(images, channels, height, width)``, clipped to [-1, 1].
    float_timing, timing : Timing
        Seconds of each call of the UNet.
    float_dtype : torch.dtype
    float_weight_bytes, weight_bytes : int
    machine : dict
        ``cpu``, ``cores``, ``threads``, ``isa`` and ``torch``.
    """

    timesteps: list
    psnr_per_step: list
    float_images: torch.Tensor
    images: torch.Tensor
    float_timing: Timing
    timing: Timing
    float_dtype: torch.dtype
    float_weight_bytes: int
    weight_bytes: int
    machine: dict

    @property
    def psnr(self):
        """Of the final images, dB."""
        return psnr(self.images, self.float_images)

    @property
    def speedup(self):
        """Time of the float model over that of the converted one, with a 95 % interval."""
        return paired_ratio(self.float_timing, self.timing)

    def __repr__(self):
        ours, theirs, facts = self.timing, self.float_timing, self.machine
        images, steps = counted(len(self.images), "image"), counted(len(self.timesteps), "step")
        return (
            f"PSNR {self.psnr:.2f} dB over {images} after {steps}\n"
            f"{1e3 * ours.median:.1f} ms per call, float {1e3 * theirs.median:.1f} ms: "
            f"{self.speedup} times as fast (95 % interval)\n"
            f"{self.weight_bytes / 1e6:.1f} MB of weights, float {self.float_weight_bytes / 1e6:.1f} MB\n"
            f"{described(facts)}"
        )

    def to_dict(self):
        """All but the images, JSON-serializable; an infinite PSNR (identical) is None."""
        speedup = self.speedup
        return {
            "psnr": _finite(self.psnr),
            "psnr_per_step": [_finite(value) for value in self.psnr_per_step],
            "timesteps": self.timesteps,
            "images": len(self.images),
            "float": self.float_timing.to_dict() | {"weight_bytes": self.float_weight_bytes},
            "converted": self.timing.to_dict() | {"weight_bytes": self.weight_bytes},
            "speedup": {"median": speedup.median, "low": speedup.low, "high": speedup.high},
            "machine": self.machine,
        }


def _finite(value):
    return None if math.isinf(value) else value


@torch.no_grad()
def compare(
    float_unet, unet, scheduler, *, num_inference_steps=20, images=8, seed=0, progress=None
):
    """Sample with two models from the same noise, and time them.

    The models take turns at each step: whatever else the machine does meanwhile slows both alike.

    Parameters
    ----------
    float_unet, unet : UNet2DModel or UNet2DConditionModel
        Of one configuration; `unet` converted by :func:`tfq.convert`. A model that needs text is given
        zeros for it.
    scheduler : diffusers scheduler
        Copied, not changed. Images match the closer the less noise it adds.
    num_inference_steps : int
    images : int
        Batch size.
    seed : int
        Of the noise.
    progress : callable, optional
        ``progress(done, total, label)`` after each step.

    Returns
    -------
    Comparison

    Raises
    ------
    TypeError
        If one of the two is no model that :func:`tfq.convert` takes.
    ValueError
        If `images` is less than 1, or the models differ in the shape of their inputs.

    Examples
    --------
    >>> import copy, tfq
    >>> from diffusers import DDIMScheduler, UNet2DModel
    >>> unet = UNet2DModel(sample_size=8, block_out_channels=(32, 32),
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
    >>> converted = tfq.convert(copy.deepcopy(unet))
    >>> result = tfq.compare(unet, converted, DDIMScheduler(), num_inference_steps=2, images=1)
    >>> len(result.psnr_per_step)
    2
    """
    for model in (float_unet, unet):
        if not isinstance(model, models.CLASSES):
            raise TypeError(
                f"compare: models must be two of {models.CLASS_NAMES}; got a {models.described(model)}"
            )
    if images < 1:
        raise ValueError(f"compare: images must be at least 1, got {images}")
    runs = [
        Trajectory(model, scheduler, num_inference_steps, images, seed)
        for model in (float_unet, unet)
    ]
    if runs[0].sample.shape != runs[1].sample.shape:
        raise ValueError(
            f"compare: both models need inputs of one shape, got {tuple(runs[0].sample.shape)} and "
            f"{tuple(runs[1].sample.shape)}"
        )
    seconds, per_step = ([], []), []
    for run in runs:
        run.predict(run.timesteps[0])  # allocates and chooses kernels: not part of any step
    for done, timestep in enumerate(runs[0].timesteps, 1):
        for run, spent in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            output = run.predict(timestep)
            spent.append(time.perf_counter() - started)
            run.step(timestep, output)
        per_step.append(psnr(runs[1].sample, runs[0].sample))
        if progress is not None:
            progress(done, len(runs[0].timesteps), "sampling")
    float_images, converted_images = (run.sample.clamp(-1, 1) for run in runs)
    facts = info()
    return Comparison(
        runs[0].timesteps.tolist(), per_step, float_images, converted_images,
        *(Timing(tuple(spent)) for spent in seconds),
        float_unet.dtype, weight_bytes(float_unet), weight_bytes(unet),
        {name: facts[name] for name in ("cpu", "cores", "threads", "isa", "torch")},
    )  # fmt: skip

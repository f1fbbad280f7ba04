"""Calibration through a diffusers pipeline: the calls its UNet really gets.

Text encoding, guidance, added conditions and the scheduler's own timesteps are the pipeline's; nothing
of it is imitated here.
"""

import contextlib
import copy
import inspect

import torch
from diffusers import DiffusionPipeline

from tfq import calibrate
from tfq.models import component_of


def is_pipeline(model):
    """Whether `model` is a diffusers pipeline."""
    return isinstance(model, DiffusionPipeline)


def unet_of(pipeline):
    """The UNet or transformer of a pipeline; raises TypeError if it has none."""
    name = component_of(pipeline)
    if name is not None:
        return getattr(pipeline, name)
    raise TypeError(
        f"convert: {type(pipeline).__name__} has no unet or transformer, only "
        f"{', '.join(pipeline.components)}; a pipeline is converted by one of these"
    )


def calls_of(pipeline, config, scheduler, num_inference_steps, calibration, prompts, progress):
    """Keyword arguments that calibrate a pipeline's UNet as those of the pipeline say."""
    if calibration is not None:
        if prompts is not None:
            raise ValueError("convert: prompts= and calibration= both calibrate; pass one of them")
        return {
            "scheduler": scheduler,
            "num_inference_steps": num_inference_steps,
            "calibration": calibration,
        }
    if prompts is None and scheduler is None and num_inference_steps is None:
        return {}
    if prompts is None and config.activation_ranges == "dynamic":
        # Nothing to record: the timesteps are enough.
        return {
            "scheduler": scheduler or pipeline.scheduler,
            "num_inference_steps": num_inference_steps,
        }
    return {
        "calibration": PipelineCalibration(
            pipeline, config, scheduler, num_inference_steps, prompts, progress
        )
    }


class PipelineCalibration:
    """A calibration: ``calibration(unet)`` runs the pipeline, once for each prompt.

    A pipeline without text makes ``config.calibration_samples`` images in one run. The pipeline is as
    it was afterwards: it runs with a copy of the scheduler, and the default generator is put back.

    Parameters
    ----------
    pipeline : DiffusionPipeline
    config : TfqConfig
    scheduler : diffusers scheduler or None
        To calibrate with; None: the pipeline's own.
    num_inference_steps : int or None
        None: what the pipeline does when it is not told.
    prompts : list of str or None
        None: for pipelines that take no prompt.
    progress : callable or None

    Raises
    ------
    TypeError, ValueError
        If the pipeline and the prompts do not fit.
    """

    def __init__(self, pipeline, config, scheduler, num_inference_steps, prompts, progress=None):
        self.pipeline = pipeline
        self.name = type(pipeline).__name__
        self.accepted = inspect.signature(type(pipeline).__call__).parameters
        self.config = config
        self.scheduler = scheduler
        self.steps = num_inference_steps
        self.progress = progress
        self.prompts = self._check_prompts(prompts)
        if scheduler is not None or num_inference_steps is not None:
            steps = calibrate.DEFAULT_STEPS if num_inference_steps is None else num_inference_steps
            calibrate.check_scheduler(scheduler or pipeline.scheduler, steps)

    def _check_prompts(self, prompts):
        takes_text = "prompt" in self.accepted
        if prompts is None:
            if takes_text:
                raise ValueError(
                    f"convert: {self.name} needs text to calibrate with: pass prompts=[...], a list of "
                    f"typical prompts, or calibration="
                )
            if "batch_size" not in self.accepted:
                raise ValueError(
                    f"convert: {self.name} does not run on its own: pass calibration=lambda unet: pipe(...)"
                )
            return None
        if not takes_text:
            raise ValueError(
                f"convert: {self.name} takes no prompt; pass num_inference_steps= to calibrate on its own "
                f"images"
            )
        if isinstance(prompts, str) or not hasattr(prompts, "__iter__"):
            raise TypeError(
                f"convert: prompts must be a list of str, got {type(prompts).__name__} {prompts!r}"
            )
        prompts = list(prompts)
        if not prompts:
            raise ValueError("convert: prompts is empty; pass at least one typical prompt")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise TypeError(
                    f"convert: prompts must be a list of str, but has {type(prompt).__name__} {prompt!r}"
                )
        return prompts

    def __call__(self, unet):
        """Run the pipeline, whose UNet `unet` is."""
        runs = [{"batch_size": self.config.calibration_samples}]
        if self.prompts is not None:
            runs = [{"prompt": prompt} for prompt in self.prompts]
        with self._private_state():
            for index, arguments in enumerate(runs):
                self._run(arguments, self.config.seed + index)
                if self.progress is not None:
                    self.progress(index + 1, len(runs), "calibration")

    def _run(self, arguments, seed):
        optional = {"generator": torch.Generator().manual_seed(seed)}
        if self.steps is not None:
            optional["num_inference_steps"] = self.steps
        if getattr(self.pipeline, "vae", None) is not None:
            optional["output_type"] = "latent"  # no image is decoded
        arguments |= {name: value for name, value in optional.items() if name in self.accepted}
        try:
            self.pipeline(**arguments)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"convert: {self.name} does not run with {', '.join(sorted(arguments))} alone: {error}; "
                f"if it needs more, pass calibration=lambda unet: pipe(...) with all it needs"
            ) from error

    @contextlib.contextmanager
    def _private_state(self):
        pipeline = self.pipeline
        attributes = dict(pipeline.__dict__)  # a run leaves some behind
        bar = attributes.get("_progress_bar_config", {})
        pipeline.scheduler = copy.deepcopy(self.scheduler or pipeline.scheduler)
        pipeline._progress_bar_config = {**bar, "disable": True}
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            pipeline.__dict__.clear()
            pipeline.__dict__.update(attributes)

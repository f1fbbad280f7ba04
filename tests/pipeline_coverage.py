"""Which pipelines and schedulers work: each is run in float, converted, saved, loaded and compiled.

``python tests/pipeline_coverage.py`` writes the table of docs/coverage.md; tests/test_coverage.py holds
each of its rows to bounds. The models are small and have random weights: they show that the parts fit
together, not how good images look.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time

import diffusers
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from torch._dynamo.testing import CompileCounterWithBackend

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

from models import DDPM_CIFAR10, SD15  # noqa: E402
from pipelines import FAMILIES, build, calibrate_and_convert, sample  # noqa: E402

import tfq  # noqa: E402
from tfq import TfqConfig  # noqa: E402
from tfq.comparison import psnr  # noqa: E402
from tfq.plan import plan_layers  # noqa: E402
from tfq.shapes import trace_shapes  # noqa: E402

STEPS = 4
_EULER = diffusers.EulerDiscreteScheduler
_DPM = diffusers.DPMSolverMultistepScheduler
SCHEDULERS = {
    "DDPM": diffusers.DDPMScheduler(),
    "DDIM": diffusers.DDIMScheduler(clip_sample=False),
    "PNDM": diffusers.PNDMScheduler(skip_prk_steps=True),
    "PNDM, Runge-Kutta start": diffusers.PNDMScheduler(),
    "Euler": _EULER(),
    "Euler, Karras sigmas": _EULER(use_karras_sigmas=True),
    "Euler, trailing": _EULER(timestep_spacing="trailing"),
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler(),
    "Heun, Karras sigmas": diffusers.HeunDiscreteScheduler(use_karras_sigmas=True),
    "DPM2": diffusers.KDPM2DiscreteScheduler(),
    "DPM++ 2M": _DPM(),
    "DPM++ 2M, Karras sigmas": _DPM(use_karras_sigmas=True),
    "DPM++ 2S": diffusers.DPMSolverSinglestepScheduler(),
    "UniPC": diffusers.UniPCMultistepScheduler(),
    "LCM": diffusers.LCMScheduler(),
}
# Every family with its own scheduler, and one of them with every scheduler.
ROWS = [
    *((family, None) for family in FAMILIES),
    *(("Stable Diffusion 1", scheduler) for scheduler in SCHEDULERS),
    ("DDPM", "DDIM"), ("SDXL base", "DPM++ 2M, Karras sigmas"),
    ("SDXL Turbo", "Euler, trailing"), ("ControlNet", "UniPC"),
]  # fmt: skip
# Published configurations; only their shapes are needed.
_SDXL = {
    "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_SDXL_REFINER = {
    "cross_attention_dim": 1280, "attention_head_dim": (6, 12, 24, 24),
    "block_out_channels": (384, 768, 1536, 1536), "transformer_layers_per_block": 4,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
_XL = {
    "sample_size": 128, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}  # fmt: skip
PUBLISHED = {
    "DDPM CIFAR-10": (UNet2DModel, DDPM_CIFAR10),
    "Stable Diffusion 1.5": (UNet2DConditionModel, SD15),
    "Stable Diffusion 1.5 inpainting": (UNet2DConditionModel, {**SD15, "in_channels": 9}),
    "Stable Diffusion 2.1": (
        UNet2DConditionModel,
        {
            **SD15, "sample_size": 96, "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024, "use_linear_projection": True,
        },
    ),
    "SDXL base": (UNet2DConditionModel, {**_XL, **_SDXL}),
    "SDXL refiner": (UNet2DConditionModel, {**_XL, **_SDXL_REFINER}),
    "LCM of Stable Diffusion 1.5": (UNet2DConditionModel, {**SD15, "time_cond_proj_dim": 256}),
}  # fmt: skip


@dataclasses.dataclass
class Coverage:
    """One row of the table.

    Parameters
    ----------
    family, pipeline, scheduler : str
    native_share : float
        Of the multiply-adds of what is converted; of the model with the least.
    decibels : float
        PSNR of the converted pipeline's images to the float one's, same seed.
    reloaded : bool
        Whether the saved and reloaded models make the same images, bit for bit.
    graphs : int or None
        Compilations (``fullgraph=True``) of a model for all steps; None: not compiled.
    compiled_equal : bool or None
        Whether the compiled models make the same images, bit for bit.
    """

    family: str
    pipeline: str
    scheduler: str
    native_share: float
    decibels: float
    reloaded: bool
    graphs: int | None = None
    compiled_equal: bool | None = None


def cover(family, scheduler=None, compiled=False):
    """The :class:`Coverage` of a family with its own scheduler, or another."""
    pipeline = build(family)
    if scheduler is not None:
        pipeline.scheduler = SCHEDULERS[scheduler]
    expected = sample(family, pipeline, STEPS)
    config = TfqConfig(precision="uniform", calibration_samples=2)
    calibrate_and_convert(family, pipeline, config, STEPS)
    images = sample(family, pipeline, STEPS)
    parts = converted_parts(pipeline)
    row = Coverage(
        family,
        type(pipeline).__name__,
        scheduler or type(pipeline.scheduler).__name__.removesuffix("Scheduler"),
        min(tfq.report(part).to_dict()["native_mac_share"] for part in parts.values()),
        psnr(images, expected, peak=1.0),
        torch.equal(_sample_with(_reloaded, family, pipeline), images),
    )
    if compiled:
        torch._dynamo.reset()
        counters = []

        def compile_part(part):
            counters.append(CompileCounterWithBackend("aot_eager"))
            return torch.compile(part, backend=counters[-1], fullgraph=True)

        row.compiled_equal = torch.equal(_sample_with(compile_part, family, pipeline), images)
        row.graphs = max(counter.frame_count for counter in counters)
    return row


def converted_parts(pipeline):
    """Name -> model of what was converted of a pipeline."""
    parts = {name: getattr(pipeline, name, None) for name in ("unet", "controlnet")}
    return {name: part for name, part in parts.items() if part is not None}


def _reloaded(unet):
    """The model from its file; what an IP-Adapter added is in none."""
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        loaded = type(unet).from_pretrained(folder)
    if isinstance(getattr(unet, "encoder_hid_proj", None), MultiIPAdapterImageProjection):
        loaded.encoder_hid_proj = unet.encoder_hid_proj
        loaded.set_attn_processor(dict(unet.attn_processors))
        loaded.config.encoder_hid_dim_type = unet.config.encoder_hid_dim_type
    return loaded


def _sample_with(change, family, pipeline):
    """Images of the pipeline with ``change(part)`` in the place of each converted part."""
    originals = converted_parts(pipeline)
    try:
        for name, part in originals.items():
            setattr(pipeline, name, change(part))
        return sample(family, pipeline, STEPS)
    finally:
        for name, part in originals.items():
            setattr(pipeline, name, part)


def native_share(cls, config):
    """Share of a configuration's multiply-adds that would be native, without weights."""
    with torch.device("meta"):
        unet = cls(**config)
    plans = plan_layers(unet, TfqConfig(), *trace_shapes(unet))
    total = sum(plan.macs for plan in plans)
    return sum(plan.macs for plan in plans if plan.converted) / total, total


def _markdown(rows, seconds):
    lines = [
        "# Coverage",
        "",
        "Written by `python tests/pipeline_coverage.py`. Each row is diffusers' own pipeline with a small",
        f"model of **random weights**, {STEPS} steps, run in float, converted (W8A8, ranges by timestep)",
        "and run again from the same seed. PSNR is between the two images; random weights say nothing about",
        "how good they look. *Reloaded*: the saved model makes the same image, bit for bit. *Compiled*:",
        "graphs that `torch.compile(fullgraph=True)` made for all steps, and that the image has the same",
        f"bits. {seconds / 60:.0f} minutes on one core; `tests/test_coverage.py` holds every row to bounds.",
        "",
        "| family | pipeline | scheduler | native multiply-adds | PSNR | reloaded | compiled |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        graphs = "1 graph" if row.graphs == 1 else f"{row.graphs} graphs"
        compiled = f"{graphs}, {'same bits' if row.compiled_equal else 'other bits'}"
        lines.append(
            f"| {row.family} | {row.pipeline} | {row.scheduler} | {100 * row.native_share:.1f} % | "
            f"{row.decibels:.1f} dB | {'same bits' if row.reloaded else 'differs'} | {compiled} |"
        )
    lines += [
        "",
        "Of published configurations, by shape alone:",
        "",
        "| model | multiply-adds a call | native |",
        "|---|---|---|",
    ]
    for name, (cls, config) in PUBLISHED.items():
        share, total = native_share(cls, config)
        lines.append(f"| {name} | {total / 1e9:.1f} G | {100 * share:.2f} % |")
    return "\n".join(lines) + "\n"


def main():
    """Run every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "coverage.md")
    output = parser.parse_args().output
    diffusers.logging.set_verbosity_error()
    start, rows = time.perf_counter(), []
    for family, scheduler in ROWS:
        rows.append(cover(family, scheduler, compiled=True))
        print(rows[-1], file=sys.stderr)
    output.write_text(_markdown(rows, time.perf_counter() - start))


if __name__ == "__main__":
    main()

"""Sample the embedded model in float32 and in INT8 from the same noise, and compare the two."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pathlib
import statistics
import tempfile
import time

import torch

from .model import load_model, require

MAX_STEPS = 1000
"""Steps of the diffusion the model was trained with: sampling cannot take more."""

FONT_SIZES = {"title": 24, "heading": 19, "caption": 15}
COLORS = {"page": "#ffffff", "title": "#111111", "heading": "#111111", "caption": "#5a5a5a"}
MARGIN, GAP, LINE = 32, 4, 1.35
MIN_GRID_WIDTH = 384


class DemoError(ValueError):
    """Something the user can mend; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known about one of the two models after sampling.

    Attributes
    ----------
    name : str
    ms_per_step : float
        Median over the steps of the UNet's call, milliseconds.
    weight_bytes : int
    native_mac_share : float
        Share of the multiply-adds which run on tfq's kernels, 0 to 1.
    psnr : float or None
        Final images against float32, dB; None for float32 itself.
    temporal_error : float or None
        Largest error of a temporal feature as the report states it; None for float32.
    """

    name: str
    ms_per_step: float
    weight_bytes: int
    native_mac_share: float
    psnr: float | None = None
    temporal_error: float | None = None


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Outcome of `run_demo`: the two rows, float32 first, and the path of the picture."""

    rows: tuple[Row, Row]
    output: pathlib.Path


def check_arguments(steps, images, threads, output):
    """Refuse what would fail only after minutes of sampling.

    Raises
    ------
    DemoError
        If a number is out of range, or a PNG could not be written to `output`.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise DemoError(f"--steps must be between 1 and {MAX_STEPS}, got {steps}")
    if images < 1:
        raise DemoError(f"--images must be at least 1, got {images}")
    if threads is not None and threads < 1:
        raise DemoError(f"--threads must be at least 1, got {threads}")
    if output.suffix.lower() != ".png":
        raise DemoError(f"--output must end in .png, got {str(output)!r}")
    if output.is_dir():
        raise DemoError(f"cannot write --output {str(output)!r}: it is a folder")
    if output.exists() and not os.access(output, os.W_OK):
        raise DemoError(f"cannot write --output {str(output)!r}: permission denied")
    try:
        # A file without a name: the check leaves nothing behind.
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise DemoError(f"cannot write --output {str(output)!r}: {error.strerror}") from error


@torch.no_grad()
def sample(unets, scheduler, noise, steps):
    """Draw images with deterministic DDIM (eta 0), every model from the same noise.

    The models take turns at each step: whatever else the machine does meanwhile then slows all of
    them alike, and their times stay comparable.

    Parameters
    ----------
    unets : sequence of diffusers.UNet2DModel
    scheduler : diffusers.DDIMScheduler
        Copied, not changed.
    noise : torch.Tensor
        x_T, float32 of shape (n, 1, 32, 32).
    steps : int

    Returns
    -------
    list of (torch.Tensor, float)
        For each model its images, float32 of the shape of `noise`, clipped to [-1, 1], and the
        median duration of its calls in milliseconds.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    states = [noise] * len(unets)
    durations = [[] for _ in unets]
    for unet in unets:
        unet(noise, scheduler.timesteps[0])  # allocates and chooses kernels: not part of any step
    for timestep in require("tqdm").tqdm(scheduler.timesteps, desc="sampling", unit="step"):
        for index, unet in enumerate(unets):
            x = states[index]
            started = time.perf_counter()
            predicted = unet(x, timestep).sample
            durations[index].append(1e3 * (time.perf_counter() - started))
            states[index] = scheduler.step(predicted, timestep, x, eta=0.0).prev_sample
    return [
        (x.clamp(-1.0, 1.0), statistics.median(each))
        for x, each in zip(states, durations, strict=True)
    ]


def psnr(images, reference):
    """Compute the peak signal-to-noise ratio in dB of images in [-1, 1]; infinite if identical.

    Parameters
    ----------
    images, reference : torch.Tensor
        Of one shape; the error is averaged over everything.
    """
    error = (images.double() - reference.double()).square().mean().item()
    return 10.0 * math.log10(2.0**2 / error) if error else math.inf


def run_demo(steps=20, images=16, seed=0, output="tfq-demo.png", threads=None):
    """Convert a copy of the embedded model and compares it with the original.

    Parameters
    ----------
    steps : int
        DDIM steps, 1 to 1000.
    images : int
        Batch size, also the number of images in each grid of the picture.
    seed : int
        Seed of the noise both models start from.
    output : str or path-like
        The PNG to write.
    threads : int, optional
        Threads of torch and tfq; by default as torch chooses.

    Returns
    -------
    DemoResult

    Raises
    ------
    DemoError
        If an argument is out of range or the picture cannot be written.
    ImportError
        If a dependency of the demo is missing.
    """
    output = pathlib.Path(output)
    check_arguments(steps, images, threads, output)
    for name in ("diffusers", "PIL", "tqdm"):
        require(name)
    import tfq

    if threads is not None:
        torch.set_num_threads(threads)
    unet, scheduler = load_model()
    noise = torch.randn(images, 1, 32, 32, generator=torch.Generator().manual_seed(seed))

    converted = tfq.convert(copy.deepcopy(unet), scheduler=scheduler, num_inference_steps=steps)
    (float_images, float_ms), (int8_images, int8_ms) = sample(
        [unet, converted], scheduler, noise, steps
    )

    report = tfq.report(converted).to_dict()
    float_bytes = sum(
        parameter.numel() * parameter.element_size() for parameter in unet.parameters()
    )
    rows = (
        Row("float32", float_ms, float_bytes, 0.0),
        Row(
            "INT8",
            int8_ms,
            report["weight_bytes"],
            report["native_mac_share"],
            psnr(int8_images, float_images),
            report["temporal"]["max_error"],
        ),
    )
    title = (
        f"Fashion-MNIST, DDIM, {steps} step{'s' if steps > 1 else ''}, the same noise on both sides"
    )
    picture = draw(
        title, [(row.name, caption(row, rows[0])) for row in rows], [float_images, int8_images]
    )
    try:
        picture.save(output, format="PNG")
    except OSError as error:
        raise DemoError(
            f"cannot write --output {str(output)!r}: {error.strerror or error}"
        ) from error
    return DemoResult(rows, output)


def describe_psnr(row):
    """Return the PSNR as text: decibels, or that nothing differs."""
    return "identical" if math.isinf(row.psnr) else f"{row.psnr:.1f} dB"


def caption(row, baseline):
    """Compose the line under a grid's heading."""
    parts = [f"{row.ms_per_step:.1f} ms per step", f"{row.weight_bytes / 1e6:.1f} MB of weights"]
    if row is not baseline:
        parts[0] += f" ({baseline.ms_per_step / row.ms_per_step:.2f}x)"
        parts.append(f"PSNR {describe_psnr(row)}")
    return ", ".join(parts)


def format_table(rows):
    """Format the comparison as aligned text.

    Parameters
    ----------
    rows : sequence of Row
        float32 first: the ratio is taken against it.

    Returns
    -------
    str
        One line per model below a line of headings.
    """
    cells = [
        ("", "ms per step", "ratio", "weight bytes", "native MACs", "PSNR", "max temporal error")
    ]
    for row in rows:
        cells.append(
            (
                row.name,
                f"{row.ms_per_step:.2f}",
                f"{rows[0].ms_per_step / row.ms_per_step:.2f}x",
                f"{row.weight_bytes:,}",
                f"{100 * row.native_mac_share:.1f} %",
                "-" if row.psnr is None else describe_psnr(row),
                "-" if row.temporal_error is None else f"{row.temporal_error:.2g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def grid_geometry(count):
    """Return columns, rows and magnification of a nearly square grid of 32x32 images."""
    columns = math.ceil(math.sqrt(count))
    return columns, math.ceil(count / columns), max(2, math.ceil(MIN_GRID_WIDTH / (32 * columns)))


def make_grid(images):
    """Arrange images in a grid.

    Parameters
    ----------
    images : torch.Tensor
        float32 of shape (n, 1, 32, 32), values -1 (black) to 1 (white).

    Returns
    -------
    PIL.Image.Image
        RGB; empty cells have the colour of the page.
    """
    image_module = require("PIL.Image")
    columns, rows, scale = grid_geometry(len(images))
    tile = 32 * scale
    grid = image_module.new(
        "RGB", (columns * (tile + GAP) - GAP, rows * (tile + GAP) - GAP), COLORS["page"]
    )
    values = images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    for index, value in enumerate(values):
        small = image_module.frombytes("L", (32, 32), bytes(value.flatten().tolist()))
        row, column = divmod(index, columns)
        grid.paste(
            small.resize((tile, tile), image_module.Resampling.BICUBIC),
            (column * (tile + GAP), row * (tile + GAP)),
        )
    return grid


def draw(title, captions, batches):
    """Draw labelled grids side by side.

    Parameters
    ----------
    title : str
    captions : sequence of (str, str)
        Heading and caption of each grid.
    batches : sequence of torch.Tensor
        Images of each grid, as `make_grid` takes them.

    Returns
    -------
    PIL.Image.Image
        RGB, as wide as the widest of grids and texts demands.
    """
    image_module, draw_module, font_module = (
        require(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont")
    )
    fonts = {role: font_module.load_default(size) for role, size in FONT_SIZES.items()}
    heights = {role: math.ceil(size * LINE) for role, size in FONT_SIZES.items()}
    grids = [make_grid(images) for images in batches]

    # Every column takes the width of the widest: the grids then line up under equal margins.
    texts = [
        (role, text)
        for pair in captions
        for role, text in zip(("heading", "caption"), pair, strict=True)
    ]
    column = max(
        *(grid.width for grid in grids),
        *(math.ceil(fonts[role].getlength(text)) for role, text in texts),
    )
    inner = max(
        len(grids) * column + (len(grids) - 1) * MARGIN, math.ceil(fonts["title"].getlength(title))
    )
    top = MARGIN + heights["title"] + MARGIN // 2
    below_text = top + heights["heading"] + heights["caption"] + MARGIN // 4
    page = image_module.new(
        "RGB",
        (inner + 2 * MARGIN, below_text + max(grid.height for grid in grids) + MARGIN),
        COLORS["page"],
    )
    canvas = draw_module.Draw(page)
    canvas.text((MARGIN, MARGIN), title, fill=COLORS["title"], font=fonts["title"])
    for index, (grid, (heading, text)) in enumerate(zip(grids, captions, strict=True)):
        left = MARGIN + index * (column + MARGIN)
        canvas.text((left, top), heading, fill=COLORS["heading"], font=fonts["heading"])
        canvas.text(
            (left, top + heights["heading"]), text, fill=COLORS["caption"], font=fonts["caption"]
        )
        page.paste(grid, (left, below_text))
    return page

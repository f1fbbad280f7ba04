"""Sample the embedded model in float32 and in INT8 from the same noise, and compare the two."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pathlib
import tempfile

from tfq import pictures
from tfq.progress import progress_bar
from tfq.tables import align

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

    def to_dict(self):
        """JSON-serializable; an infinite PSNR (identical images) is None."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        for row in rows:
            if row["psnr"] is not None and math.isinf(row["psnr"]):
                row["psnr"] = None
        return {"rows": rows, "output": str(self.output)}

    def __str__(self):
        return f"{format_table(self.rows)}\nwrote {self.output}"


def check_arguments(steps, images, output):
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


def run_demo(steps=20, images=16, seed=0, output="tfq-demo.png"):
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
    check_arguments(steps, images, output)
    for name in ("diffusers", "PIL", "tqdm"):
        require(name)
    import tfq

    unet, scheduler = load_model()
    converted = tfq.convert(copy.deepcopy(unet), scheduler=scheduler, num_inference_steps=steps)
    with progress_bar() as progress:
        result = tfq.compare(
            unet, converted, scheduler,
            num_inference_steps=steps, images=images, seed=seed, progress=progress,
        )  # fmt: skip

    report = tfq.report(converted).to_dict()
    rows = (
        Row("float32", 1e3 * result.float_timing.median, result.float_weight_bytes, 0.0),
        Row(
            "INT8",
            1e3 * result.timing.median,
            result.weight_bytes,
            report["native_mac_share"],
            result.psnr,
            report["temporal"]["max_error"],
        ),
    )
    title = (
        f"Fashion-MNIST, DDIM, {steps} step{'s' if steps > 1 else ''}, the same noise on both sides"
    )
    picture = draw(
        title,
        [(row.name, caption(row, rows[0])) for row in rows],
        [result.float_images, result.images],
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
    heading, *lines = align(cells).splitlines()
    return "\n".join([heading, "-" * len(heading), *lines])


def grid_geometry(count):
    """Return columns, rows and magnification of a nearly square grid of 32x32 images."""
    return pictures.grid_geometry(count, 32, MIN_GRID_WIDTH, least_scale=2)


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
    for index, value in enumerate(pictures.to_uint8(images)):
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

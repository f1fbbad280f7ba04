"""Pictures of the quality harness: each must be understood without its text."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.colors import LogNorm, TwoSlopeNorm  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from tfq.temporal_modes import disturbance  # noqa: E402

_DPI = 110
_SHOWN_IMAGES = 8
# Neighbors differ in their dashes too: arms may lie on one another.
_STYLES = ("-", "--", "-.", ":")
# tau is drawn on a logarithmic scale, cut at this factor both ways.
_TAU_DECADES = 2.0
# An error of 0 has no place on a logarithmic axis.
_SMALLEST_ERROR = 1e-12


def _save(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")
    plt.close(figure)
    return path


def _line_style(index):
    return dict(color=f"C{index % 10}", linestyle=_STYLES[index % len(_STYLES)])


def sample_grid(path, title, images, captions):
    """One line of images for each arm, all from the same noise.

    Parameters
    ----------
    path : pathlib.Path
    title : str
    images : dict of str to Tensor
        Arm -> ``(n, channels, size, size)`` in [-1, 1].
    captions : dict of str to str
        Second line of an arm's label.
    """
    count = min(_SHOWN_IMAGES, min(len(x) for x in images.values()))
    size = next(iter(images.values())).shape[-1]
    figure, axes = plt.subplots(
        len(images), 1, figsize=(1.05 * count + 2.6, 1.12 * len(images)), squeeze=False
    )
    for (name, arm_images), axis in zip(images.items(), axes[:, 0], strict=True):
        strip = ((arm_images[:count] + 1) / 2).clamp(0, 1).permute(2, 0, 3, 1)
        strip = strip.reshape(size, count * size, -1)
        pixels = strip[..., 0] if strip.shape[-1] == 1 else strip
        axis.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        label = f"{name}\n{captions.get(name, '')}".rstrip()
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(h_pad=0.2)
    return _save(figure, path)


def psnr_over_steps(path, title, rows):
    """PSNR of the partly denoised image to the float model's, after each sampling step.

    Parameters
    ----------
    rows : dict of str to list of (float or None)
        Arm -> dB after each step; None (exact) is left out.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    last = max(len(values) for values in rows.values())
    for index, (name, values) in enumerate(rows.items()):
        shown = [math.nan if v is None else v for v in values]
        axis.plot(range(1, len(values) + 1), shown, label=name, **_line_style(index))
    axis.set_xlabel("sampling step (1 = first, from pure noise)")
    axis.set_ylabel("PSNR of x_t to the float model's, dB")
    axis.set_xlim(1, max(last, 2))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _save(figure, path)


def temporal_error_over_time(path, title, timesteps, maps):
    """Relative error and cosine of the temporal features at each timestep, mean over the ResBlocks.

    Parameters
    ----------
    timesteps : list of float
    maps : dict of str to dict
        Arm -> ``{"relative": [t][i], "cosine": [t][i]}``.
    """
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.5, 6.5), sharex=True)
    for index, (name, errors) in enumerate(maps.items()):
        relative = torch.tensor(errors["relative"]).mean(1)
        distance = (1 - torch.tensor(errors["cosine"], dtype=torch.float64)).mean(1)
        style = _line_style(index)
        if (relative == 0).all():
            upper.plot([], [], label=f"{name}: 0 everywhere", **style)
            continue
        upper.plot(timesteps, relative.clamp(min=_SMALLEST_ERROR), label=name, **style)
        lower.plot(timesteps, distance.clamp(min=_SMALLEST_ERROR), **style)
    for axis, label in ((upper, "relative L2 error"), (lower, "1 - cosine")):
        axis.set_yscale("log")
        axis.set_ylabel(f"{label}, mean over ResBlocks")
        axis.grid(alpha=0.3)
    lower.set_xlabel("timestep t (sampling runs from right to left)")
    upper.set_title(title, fontsize=11)
    upper.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return _save(figure, path)


def tau_maps(path, title, timesteps, panels):
    """Map of tau = L(quantized block) / L(cache) over timesteps and ResBlocks, and both errors.

    Parameters
    ----------
    timesteps : list of float
    panels : dict of str to (Tensor, Tensor)
        Setting -> squared errors ``(timesteps, blocks)`` of block and cache.
    """
    figure, axes = plt.subplots(
        len(panels), 3, figsize=(13, 3.9 * len(panels)), squeeze=False, layout="constrained"
    )
    both = torch.stack([torch.stack(pair) for pair in panels.values()])
    positive = both[both > 0]
    bounds = (positive.min().item(), positive.max().item()) if len(positive) else (1e-9, 1.0)
    for (name, (block, cache)), line in zip(panels.items(), axes, strict=True):
        ratio = disturbance(block, cache)
        chosen = (ratio < 1).double().mean().item()
        logarithm = ratio.clamp(10**-_TAU_DECADES, 10**_TAU_DECADES).log10()
        norm = TwoSlopeNorm(0, -_TAU_DECADES, _TAU_DECADES)
        pictures = [
            (logarithm, dict(cmap="RdBu_r", norm=norm), "log10 tau, cut at -2 and 2",
             f"{name}\nblue: tau < 1, block chosen at {100 * chosen:.0f} % of (t, i); red: cache"),
            (block, dict(cmap="viridis", norm=LogNorm(*bounds)), "squared error",
             f"{name}\nerror of the quantized block"),
            (cache, dict(cmap="viridis", norm=LogNorm(*bounds)), "squared error",
             f"{name}\nerror of the 8-bit cache"),
        ]  # fmt: skip
        for axis, (values, look, unit, caption) in zip(line, pictures, strict=True):
            drawn = axis.imshow(values.T.numpy(), aspect="auto", interpolation="nearest", **look)
            axis.set_title(caption, fontsize=9)
            axis.set_xlabel("timestep t, in sampling order")
            axis.set_ylabel("ResBlock i, in module order")
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
            ticks = range(0, len(timesteps), max(1, len(timesteps) // 5))
            axis.set_xticks(list(ticks), [f"{timesteps[i]:.0f}" for i in ticks])
            figure.colorbar(drawn, ax=axis, label=unit)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)

"""The comparison that ``tfq report`` and ``tfq quality`` share."""

from tfq.calibrate import check_scheduler
from tfq.checks import why_it_cannot_sample
from tfq.commands.folders import ModelFolder
from tfq.comparison import compare
from tfq.progress import progress_bar


def open_converted(path, scheduler):
    """ModelFolder of a converted model."""
    folder = ModelFolder.open(path, scheduler)
    if not folder.is_converted:
        raise ValueError(f"{path!r} is not converted: convert it with `tfq convert {path} OUT`")
    return folder


def compare_folders(converted, unet, original, scheduler, steps, images, noise_seed):
    """:class:`tfq.Comparison` of `unet`, loaded from `converted`, with the float model in `original`."""
    source = ModelFolder.open(original, scheduler)
    if source.is_converted:
        raise ValueError(f"{original!r} is converted; give the float model it was made from")
    sampler = source.load_scheduler() or converted.load_scheduler()
    if sampler is None:
        raise ValueError(f"{original!r} has no scheduler to sample with: give --scheduler FOLDER")
    check_scheduler(sampler, steps)
    float_unet = source.load_unet(unet.dtype)
    if reason := why_it_cannot_sample(float_unet):
        raise ValueError(
            f"cannot sample with the UNet alone, as {reason}; compare images of its pipeline in Python"
        )
    with progress_bar() as progress:
        return compare(
            float_unet, unet, sampler, num_inference_steps=steps, images=images, seed=noise_seed,
            progress=progress,
        )  # fmt: skip

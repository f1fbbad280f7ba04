"""``tfq quality``: how far a converted model's samples are from those of its original."""

import pathlib

from tfq.commands.comparing import compare_folders, open_converted
from tfq.commands.folders import set_threads
from tfq.pictures import before_after


def run(model, original, images_to, scheduler, steps, images, noise_seed, threads):
    """Compare the converted model in `model` with the float one in `original`.

    Returns
    -------
    tfq.Comparison
    """
    if images_to is not None and pathlib.Path(images_to).suffix != ".png":
        raise ValueError(f"--images-to must end in .png, got {images_to!r}")
    folder = open_converted(model, scheduler)
    set_threads(threads)
    unet = folder.load_unet()
    result = compare_folders(folder, unet, original, scheduler, steps, images, noise_seed)
    if images_to is not None:
        before_after(result.float_images, result.images).save(images_to)
    return result

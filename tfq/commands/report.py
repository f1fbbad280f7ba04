"""``tfq report``: the report of a converted model, with a comparison to its original if there is one."""

import pathlib

from tfq.commands.comparing import compare_folders, open_converted
from tfq.commands.folders import set_threads
from tfq.reporting import check_suffix, report


def run(model, original, output, scheduler, steps, images, noise_seed, threads):
    """Report on the converted model in `model`.

    Returns
    -------
    tfq.Report
    """
    if output is not None:
        check_suffix(pathlib.Path(output))
    folder = open_converted(model, scheduler)
    set_threads(threads)
    unet = folder.load_unet()
    comparison = None
    if original is not None:
        comparison = compare_folders(folder, unet, original, scheduler, steps, images, noise_seed)
    result = report(unet, comparison=comparison)
    if output is not None:
        result.save(output)
    return result

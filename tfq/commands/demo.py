"""``tfq demo``."""

from tfq.commands.folders import set_threads
from tfq.demo.run import run_demo


def run(steps, images, seed, output, threads):
    """Run :func:`tfq.demo.run.run_demo`."""
    set_threads(threads)
    return run_demo(steps, images, seed, output)

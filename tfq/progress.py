"""Progress of long work as a bar on the terminal."""

import contextlib
import sys


@contextlib.contextmanager
def progress_bar(stream=None):
    """Give a ``progress(done, total, label)`` that draws a bar; it starts anew when `done` does.

    Parameters
    ----------
    stream : file, optional
        Default standard error, so that what a command prints can be piped.
    """
    from tqdm import tqdm

    bar = None

    def progress(done, total, label):
        nonlocal bar
        if bar is None or bar.total != total or done <= bar.n:
            if bar is not None:
                bar.close()
            bar = tqdm(desc=label, total=total, file=stream or sys.stderr)
        bar.set_description(label, refresh=False)
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()

"""Work that the processes of torch.distributed share: each does some units, all get all results.

A unit is a calibration call or a trajectory. Results are put together in the order of the units, not of
the processes, so that they are those of one process, bit for bit. Without ``init_process_group``, or
with one process, a process does everything.
"""

import contextlib

from torch import distributed


def _processes():
    active = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if active else 1


def is_mine(unit):
    """Whether this process does the unit of this number: they are dealt out in turn."""
    processes = _processes()
    return processes == 1 or unit % processes == distributed.get_rank()


def _all(value):
    """The value of each process, in their order."""
    if _processes() == 1:
        return [value]
    values = [None] * _processes()
    distributed.all_gather_object(values, value)
    return values


def gather(units):
    """Units of all processes: dict of number -> result, ascending.

    A unit that several processes did (a calibration that cannot be dealt out) counts once.
    """
    merged = {number: result for part in _all(units) for number, result in part.items()}
    return dict(sorted(merged.items()))


@contextlib.contextmanager
def failing_together():
    """An error in the block of one process is raised in all, so that none waits for it forever."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    texts = _all(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for process, text in enumerate(texts):
        if text is not None:
            raise RuntimeError(f"convert: calibration failed in process {process}: {text}")

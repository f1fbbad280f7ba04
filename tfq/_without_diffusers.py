"""What stands for the functions that take a diffusers model where diffusers is not installed."""


def _raise(name):
    raise ImportError(
        f"tfq.{name} needs diffusers, which is not installed: pip install 'diffusers>=0.42' accelerate"
    )


def convert(*args, **kwargs):
    """Raise ImportError."""
    _raise("convert")


def graph(*args, **kwargs):
    """Raise ImportError."""
    _raise("graph")


def save(*args, **kwargs):
    """Raise ImportError."""
    _raise("save")


def temporal_blocks(*args, **kwargs):
    """Raise ImportError."""
    _raise("temporal_blocks")


def compare(*args, **kwargs):
    """Raise ImportError."""
    _raise("compare")


def report(*args, **kwargs):
    """Raise ImportError."""
    _raise("report")


class Comparison:
    """Cannot be made."""

    def __init__(self, *args, **kwargs):
        _raise("Comparison")


class Report:
    """Cannot be made."""

    def __init__(self, *args, **kwargs):
        _raise("Report")

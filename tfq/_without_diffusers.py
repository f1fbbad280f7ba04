"""What stands for the functions that take a diffusers model where diffusers is not installed."""


def _raise(name):
    raise ImportError(
        f"tfq.{name} needs diffusers, which is not installed: pip install 'diffusers>=0.42' accelerate"
    )


def convert(*args, **kwargs):
    """Raise ImportError."""
    _raise("convert")


def save(*args, **kwargs):
    """Raise ImportError."""
    _raise("save")


def temporal_blocks(*args, **kwargs):
    """Raise ImportError."""
    _raise("temporal_blocks")

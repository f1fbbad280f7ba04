"""The embedded model: a small trained denoiser, ``tfq demo``, and the script which trained it."""

from .model import load_model

__all__ = ["load_model"]

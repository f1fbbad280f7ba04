"""Load the denoiser which travels with the package."""

from __future__ import annotations

import importlib
import pathlib

WEIGHTS = pathlib.Path(__file__).parent / "weights"
"""Folder with the model (float16), its scheduler's configuration, a licence and a card."""


def require(name):
    """Import an optional dependency.

    Parameters
    ----------
    name : str
        Module name.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"the demo needs {name} ({error}): pip install 'tfq[demo]'") from error


def load_model():
    """Load the embedded denoiser, trained on Fashion-MNIST padded to 32x32.

    Returns
    -------
    unet : diffusers.UNet2DModel
        In float32 and evaluation mode. Takes x_t, float32 of shape (n, 1, 32, 32), and timesteps
        from 0 to 999; predicts the noise.
    scheduler : diffusers.DDIMScheduler
        1000 training steps, ``beta_schedule="squaredcos_cap_v2"``; images are in [-1, 1].

    Raises
    ------
    ImportError
        If diffusers is not installed.
    """
    diffusers = require("diffusers")
    import torch

    # Without low_cpu_mem_usage=False, diffusers logs a warning on machines which lack accelerate.
    unet = diffusers.UNet2DModel.from_pretrained(
        WEIGHTS, dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
    )
    scheduler = diffusers.DDIMScheduler.from_pretrained(WEIGHTS, local_files_only=True)
    return unet.eval(), scheduler
